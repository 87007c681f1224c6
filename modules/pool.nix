# An optional ZFS pool for data on disks of their own: snapshots by sanoid, copies to a second pool by syncoid. The root
# file system stays as it is, and a missing pool never stops a boot.
{ config, lib, ... }:
let
  cfg = config.appliance.pool;
  inherit (lib) mkOption types;
  kept =
    what: default: example:
    mkOption {
      type = types.ints.unsigned;
      inherit default example;
      description = "${what} snapshots that are kept.";
    };
  mounts = lib.filterAttrs (
    _: fs: fs.fsType == "zfs" && (fs.device == cfg.name || lib.hasPrefix "${cfg.name}/" (toString fs.device))
  ) config.fileSystems;
in
{
  options.appliance.pool = {
    enable = lib.mkEnableOption "a ZFS pool for data";
    name = mkOption {
      type = types.strMatching "[A-Za-z][A-Za-z0-9_-]{0,62}";
      default = "tank";
      example = "tank";
      description = "Name of the pool. Create it once: `zpool create -o ashift=12 -O compression=lz4 -O atime=off tank mirror DISK DISK`.";
    };
    datasets = mkOption {
      type = types.listOf (types.strMatching "[A-Za-z][A-Za-z0-9_./-]*");
      default = [ "data" ];
      example = [
        "data"
        "assistant"
      ];
      description = "Datasets of the pool that get snapshots, with their children.";
    };
    keep = {
      hourly = kept "Hourly" 36 48;
      daily = kept "Daily" 30 14;
      monthly = kept "Monthly" 3 6;
    };
    copyTo = mkOption {
      type = types.nullOr (types.strMatching "[A-Za-z][A-Za-z0-9_./-]*");
      default = null;
      example = "second/tank";
      description = "Dataset on another pool that receives copies of the datasets; null for none.";
    };
    arcMaxGiB = mkOption {
      type = types.ints.positive;
      default = 8;
      example = 16;
      description = "Limit of ZFS's cache in GiB. Without one it takes memory that engines need.";
    };
    importSec = mkOption {
      type = types.ints.between 30 600;
      default = 90;
      example = 120;
      description = "Seconds after which the boot continues without the pool.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = config.networking.hostId != null;
        message = "appliance.pool needs networking.hostId, so that ZFS recognises the pool of another machine: set it to the output of `head -c 8 /etc/machine-id`.";
      }
      {
        assertion = !(config.boot.zfs.modulePackage.meta.broken or false);
        message = "appliance.pool: this nixpkgs has no ZFS for the kernel ${config.boot.kernelPackages.kernel.version or ""}: use a kernel up to 7.0, such as the one of appliance.pins, or disable the pool.";
      }
      {
        assertion = lib.all (fs: lib.elem "nofail" fs.options) (lib.attrValues mounts);
        message = "appliance.pool: ${lib.concatStringsSep ", " (lib.attrNames mounts)} would stop the boot if the pool is missing: add \"nofail\" to fileSystems.NAME.options.";
      }
      {
        assertion = cfg.copyTo == null || !(cfg.copyTo == cfg.name || lib.hasPrefix "${cfg.name}/" cfg.copyTo);
        message = "appliance.pool.copyTo = \"${toString cfg.copyTo}\" is on the pool ${cfg.name} itself, so a copy would be lost with it: name a dataset of another pool.";
      }
      {
        assertion = lib.all (path: !(mounts ? ${path})) [
          "/"
          "/nix"
          "/var"
        ];
        message = "appliance.pool is for data: the root file system, /nix and /var must not be on it.";
      }
    ];

    boot = {
      supportedFilesystems = [ "zfs" ];
      zfs = {
        extraPools = [ cfg.name ];
        # A pool that another machine uses must not be taken from it.
        forceImportRoot = false;
      };
      # https://github.com/openzfs/zfs/issues/17052
      extraModprobeConfig = "options zfs zfs_arc_max=${toString (cfg.arcMaxGiB * 1024 * 1024 * 1024)}";
    };
    services.zfs = {
      autoScrub = {
        enable = true;
        pools = [ cfg.name ];
      };
      trim.enable = true;
    };
    # NixOS tries for a minute. A disk that hangs would hold zfs-import.target, and with it the boot, without a limit.
    systemd.services."zfs-import-${cfg.name}".serviceConfig.TimeoutStartSec = cfg.importSec;

    services.sanoid = {
      enable = true;
      templates.appliance = {
        inherit (cfg.keep) hourly daily monthly;
        yearly = 0;
        autosnap = true;
        autoprune = true;
      };
      datasets = lib.genAttrs (map (dataset: "${cfg.name}/${dataset}") cfg.datasets) (_: {
        useTemplate = [ "appliance" ];
        recursive = true;
      });
    };
    services.syncoid = lib.mkIf (cfg.copyTo != null) {
      enable = true;
      # sanoid's snapshots are enough: a snapshot for each copy would only fill the pool.
      commonArgs = [ "--no-sync-snap" ];
      commands = lib.listToAttrs (
        map (
          dataset:
          lib.nameValuePair "${cfg.name}/${dataset}" {
            source = "${cfg.name}/${dataset}";
            target = "${cfg.copyTo}/${dataset}";
            recursive = true;
          }
        ) cfg.datasets
      );
    };
  };
}
