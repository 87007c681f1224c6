# Huge pages for what can use them, and a refusal to starve everything else.
#
# vLLM on the GPU gains nothing from hugetlbfs; llama.cpp with experts in RAM gains from transparent huge
# pages. So the default is `madvise`, and a reservation is something one asks for by name.
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
      description = "RAM of this host in GiB; limits below are checked against it.";
    };
    hugepages.reserveGiB = lib.mkOption {
      type = lib.types.ints.unsigned;
      default = 0;
      example = 16;
      description = "RAM in GiB reserved as 2 MiB huge pages at boot. Taken from the page cache for good.";
    };
    transparentHugepages = lib.mkOption {
      type = lib.types.enum [
        "madvise"
        "always"
        "never"
      ];
      default = "madvise";
      example = "always";
      description = "Transparent huge pages. `always` suits a host whose only load is llama.cpp on the CPU.";
    };
    maxMapCount = lib.mkOption {
      type = lib.types.ints.positive;
      default = 1048576;
      example = 1048576;
      description = "Mappings a process may hold; large checkpoints are mapped shard by shard.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = reserved * 2 <= cfg.totalGiB;
        message = ''
          appliance.memory.hugepages.reserveGiB = ${toString reserved} takes more than half of the
          ${toString cfg.totalGiB} GiB of RAM. No engine on a GPU uses them; model files are read through the
          page cache and pinned buffers need ordinary pages: set it to 0, or to at most ${toString (cfg.totalGiB / 2)}.
        '';
      }
    ];
    boot.kernel.sysctl = {
      "vm.nr_hugepages" = lib.mkIf (reserved > 0) (reserved * 512);
      "vm.max_map_count" = cfg.maxMapCount;
      # Weights pushed out to swap make the next answer wait for a disk.
      "vm.swappiness" = lib.mkDefault 1;
    };
    boot.kernelParams = [ "transparent_hugepage=${cfg.transparentHugepages}" ];
  };
}
