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
in
{
  options.appliance.models = {
    enable = lib.mkEnableOption "the model store and its verification";
    store = {
      kind = mkOption {
        type = types.enum [
          "directory"
          "tmpfs"
        ];
        default = "directory";
        example = "tmpfs";
        description = "`directory` keeps weights on disk, `tmpfs` in RAM, for a host that swaps models often.";
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
        assertion =
          cfg.store.kind == "tmpfs" -> cfg.store.sizeGiB * 4 <= config.appliance.memory.totalGiB * 3;
        message = ''
          appliance.models.store.sizeGiB = ${toString cfg.store.sizeGiB} leaves too little of the
          ${toString config.appliance.memory.totalGiB} GiB of RAM for the engines: set at most
          ${toString (config.appliance.memory.totalGiB * 3 / 4)}, or store.kind = "directory".
        '';
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

    fileSystems = lib.mkIf (cfg.store.kind == "tmpfs") {
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
    # World-readable: weights are public, and every engine has its own user.
    systemd.tmpfiles.settings.appliance-models = lib.mkIf (cfg.store.kind == "directory") {
      ${cfg.store.path}.d = {
        mode = "0755";
        user = "root";
        group = "root";
      };
    };

    environment.etc."appliance/models.lock" = lib.mkIf (cfg.lock != null) { source = cfg.lock; };
    systemd.services.appliance-models-verify = lib.mkIf (cfg.lock != null) {
      description = "Check the weights against models.lock";
      wantedBy = [ "multi-user.target" ];
      unitConfig.RequiresMountsFor = [ cfg.store.path ];
      serviceConfig = hardened // {
        Type = "oneshot";
        RemainAfterExit = true;
        DynamicUser = true;
        ExecStart = "${lib.getExe config.appliance.package} models verify --lock /etc/appliance/models.lock --store ${cfg.store.path}";
        ReadOnlyPaths = [ cfg.store.path ];
        # It reads hundreds of GiB at the speed of the disk.
        TimeoutStartSec = "2h";
      };
    };
  };
}
