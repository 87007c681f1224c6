# The model store: weights outside the Nix store, fetched by revision. A unit verifies them against models.lock before
# an engine starts.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; }) hardened;
  cfg = config.appliance.models;
  inherit (lib) mkOption types;
  isFolder = model: lib.hasPrefix "/" model.source || lib.hasPrefix "package:" model.source;
  loose = lib.filterAttrs (
    _: model: !(isFolder model) && model.revision == null
  ) config.appliance.settings.models;
  models =
    action:
    "${lib.getExe config.appliance.package} models ${action} --lock /etc/appliance/models.lock --store ${cfg.store.path}";
  # As root without capabilities: it owns the store, and records in it which files are verified.
  writesStore = hardened // {
    Type = "oneshot";
    ReadWritePaths = [ cfg.store.path ];
    # Every engine reads the record and the weights as its own user.
    UMask = "0022";
    # It reads hundreds of GiB at the speed of the disk.
    TimeoutStartSec = "2h";
  };
  verification.unitConfig.RequiresMountsFor = [ cfg.store.path ];
in
{
  options.appliance.models = {
    enable = lib.mkEnableOption "the model store and its verification";
    store = {
      kind = mkOption {
        type = types.enum [
          "directory"
          "raid0"
          "tmpfs"
        ];
        default = "directory";
        example = "raid0";
        description = "`directory` keeps weights on the disk of its path, `raid0` on XFS over several NVMe drives, `tmpfs` in RAM, filled from a disk at boot.";
      };
      device = mkOption {
        type = types.strMatching "/dev/.+";
        default = "/dev/md/models";
        example = "/dev/disk/by-label/models";
        description = "Device with the XFS of a raid0 store, which an operator makes once with mdadm and mkfs.xfs.";
      };
      warmFrom = mkOption {
        type = types.nullOr (types.strMatching "/.*");
        default = null;
        example = "/var/lib/appliance-models";
        description = "Store on a disk from which a tmpfs store is filled at boot; required for it.";
      };
      path = mkOption {
        type = types.strMatching "/.*";
        default = "/var/lib/appliance-models";
        example = "/srv/models";
        description = "Folder of the weights.";
      };
      sizeGiB = mkOption {
        type = types.ints.positive;
        default = 128;
        example = 256;
        description = "Size of a tmpfs store, in GiB.";
      };
    };
    lock = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = lib.literalExpression "./models.lock";
      description = "The file models.lock: repository, revision, file, size and SHA-256 of every weight file.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        # The weights, their copy in an engine that sleeps, and the rest of the host.
        assertion =
          cfg.store.kind == "tmpfs" -> cfg.store.sizeGiB * 3 <= config.appliance.memory.totalGiB;
        message = ''
          appliance.models.store.sizeGiB = ${toString cfg.store.sizeGiB} leaves too little of the
          ${toString config.appliance.memory.totalGiB} GiB of RAM for the engines: set at most
          ${toString (config.appliance.memory.totalGiB / 3)}, or store.kind = "directory".
        '';
      }
      {
        assertion =
          cfg.store.kind == "tmpfs"
          -> cfg.lock != null && cfg.store.warmFrom != null && cfg.store.warmFrom != cfg.store.path;
        message = "appliance.models.store.kind = tmpfs: RAM is empty at boot, so set appliance.models.lock, and store.warmFrom to the store on a disk that fills ${cfg.store.path}.";
      }
      {
        assertion = !(lib.hasPrefix builtins.storeDir cfg.store.path);
        message = "appliance.models.store.path = ${cfg.store.path} is in the Nix store, which weights would fill permanently: set a folder such as /var/lib/appliance-models.";
      }
      {
        assertion = loose == { };
        message = "appliance.settings.models.${lib.concatStringsSep ", " (lib.attrNames loose)}: a repository needs a pinned revision: set revision to the 40 hex digits of its commit.";
      }
    ];

    fileSystems = {
      ${cfg.store.path} = lib.mkIf (cfg.store.kind == "raid0") {
        inherit (cfg.store) device;
        fsType = "xfs";
        options = [
          "noatime"
          "nosuid"
          "nodev"
          "noexec"
          # A drive that fails takes the models away, not the host.
          "nofail"
          "x-systemd.device-timeout=30s"
        ];
      };
    }
    // lib.optionalAttrs (cfg.store.kind == "tmpfs") {
      ${cfg.store.path} = {
        device = "tmpfs";
        fsType = "tmpfs";
        options = [
          "size=${toString cfg.store.sizeGiB}G"
          "mode=0755"
          "nosuid"
          "nodev"
          "noexec"
          "huge=advise"
        ];
      };
    };
    # A RAID0 has no redundancy to watch: mdadm requires a program all the same.
    boot.swraid = lib.mkIf (cfg.store.kind == "raid0") {
      enable = true;
      mdadmConf = "PROGRAM ${lib.getExe' pkgs.coreutils "true"}";
    };
    # World-readable: weights are public, and every engine has its own user.
    systemd.tmpfiles.settings.appliance-models = lib.mkIf (cfg.store.kind != "tmpfs") {
      ${cfg.store.path}.d = {
        mode = "0755";
        user = "root";
        group = "root";
      };
    };

    environment.etc."appliance/models.lock" = lib.mkIf (cfg.lock != null) { source = cfg.lock; };
    systemd.services = lib.mkIf (cfg.lock != null) {
      appliance-models-verify = verification // {
        description = "Check the weights against models.lock";
        wantedBy = [ "multi-user.target" ];
        after = lib.optional (cfg.store.kind == "tmpfs") "appliance-models-warm.service";
        serviceConfig = writesStore // {
          RemainAfterExit = true;
          # Hashes the files that changed since their last hash, at the first boot all of them.
          ExecStart = "${models "verify"} --changed";
        };
      };
      appliance-models-verify-all = verification // {
        description = "Hash all weights and compare them with models.lock";
        startAt = "monthly";
        serviceConfig = writesStore // {
          ExecStart = models "verify";
          IOSchedulingClass = "idle";
          CPUSchedulingPolicy = "idle";
        };
      };
      appliance-models-warm = lib.mkIf (cfg.store.kind == "tmpfs") {
        description = "Fill the store in RAM from ${toString cfg.store.warmFrom}";
        wantedBy = [ "multi-user.target" ];
        unitConfig.RequiresMountsFor = [
          cfg.store.path
          (toString cfg.store.warmFrom)
        ];
        serviceConfig = writesStore // {
          RemainAfterExit = true;
          ExecStart = "${lib.getExe config.appliance.package} models warm --lock /etc/appliance/models.lock --store ${toString cfg.store.warmFrom} --to ${cfg.store.path}";
          ReadOnlyPaths = [ (toString cfg.store.warmFrom) ];
          # It reads its host's memory from /proc/meminfo.
          ProcSubset = "all";
        };
      };
    };
    systemd.timers.appliance-models-verify-all = lib.mkIf (cfg.lock != null) {
      timerConfig = {
        Persistent = true;
        RandomizedDelaySec = "6h";
      };
    };
  };
}
