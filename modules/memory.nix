# Huge pages, and a limit that protects other programs from a large reservation.
#
# vLLM on the GPU gains nothing from hugetlbfs; llama.cpp with experts in RAM gains from transparent huge pages. So the
# default is `madvise`, without a reservation.
{ config, lib, ... }:
let
  cfg = config.appliance.memory;
  reserved = cfg.hugepages.reserveGiB;
in
{
  options.appliance.memory = {
    enable = lib.mkEnableOption "huge page and locked memory settings";
    totalGiB = lib.mkOption {
      type = lib.types.ints.unsigned;
      default = config.appliance.thisHost.memory_gib;
      defaultText = lib.literalExpression "config.appliance.settings.hosts.\${config.appliance.host}.memory_gib";
      example = 128;
      description = "RAM of this host in GiB; assertions compare the limits with it.";
    };
    hugepages.reserveGiB = lib.mkOption {
      type = lib.types.ints.unsigned;
      default = 0;
      example = 16;
      description = "RAM in GiB reserved as 2 MiB huge pages at boot; the page cache cannot use it.";
    };
    transparentHugepages = lib.mkOption {
      type = lib.types.enum [
        "madvise"
        "always"
        "never"
      ];
      default = "madvise";
      example = "always";
      description = "Mode of transparent huge pages. `always` suits a host that runs only llama.cpp on the CPU.";
    };
    maxMapCount = lib.mkOption {
      type = lib.types.ints.positive;
      default = 1048576;
      example = 1048576;
      description = "Memory mappings of one process; engines map large checkpoints shard by shard.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = reserved * 2 <= cfg.totalGiB;
        message = ''
          appliance.memory.hugepages.reserveGiB = ${toString reserved} takes more than half of the
          ${toString cfg.totalGiB} GiB of RAM. No engine on a GPU uses huge pages; the page cache and pinned buffers need
          ordinary pages: set it to 0, or to at most ${toString (cfg.totalGiB / 2)}.
        '';
      }
    ];
    boot.kernel.sysctl = {
      "vm.nr_hugepages" = lib.mkIf (reserved > 0) (reserved * 512);
      "vm.max_map_count" = cfg.maxMapCount;
      # If weights are swapped out, the next response waits for the disk.
      "vm.swappiness" = lib.mkDefault 1;
    };
    boot.kernelParams = [ "transparent_hugepage=${cfg.transparentHugepages}" ];
  };
}
