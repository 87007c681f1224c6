# The gateway: one process in a sandbox, listening on loopback or on the address of the tunnel.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; })
    cardAccess
    credentials
    hardened
    secretPath
    ;
  inherit (config) appliance;
  cfg = appliance.gateway;
  listen = appliance.settings.gateway;
  dataDir = "/var/lib/appliance-gateway";
  own = appliance.network.wireguard;
  onDemand = lib.filterAttrs (_: e: e.residency == "on-demand") appliance.myEngines;
  # It compares the free memory of the cards after a sleep with what the next engine takes.
  readsCards =
    appliance.gpu.enable && lib.any (e: (e.sleep or false) && e.device == "cuda") (lib.attrValues onDemand);
  others = lib.filterAttrs (_: e: e.kind == "http") appliance.myEngines;
  strangers = lib.attrNames (removeAttrs cfg.engineKeys (lib.attrNames others));
  engineKey = name: "engine-key-${name}";
  isLoopback = lib.hasPrefix "127." listen.host || listen.host == "::1";
in
{
  options.appliance.gateway = {
    enable = lib.mkEnableOption "the gateway";
    credentials = lib.mkOption {
      type = lib.types.attrsOf secretPath;
      default = { };
      example = {
        admin-token = "/run/secrets/admin-token";
      };
      description = "Secrets that the gateway gets as systemd credentials, by name; it reads them from $CREDENTIALS_DIRECTORY.";
    };
    engineKeys = lib.mkOption {
      type = lib.types.attrsOf secretPath;
      default = { };
      example = {
        whisper = "/run/secrets/whisper-key";
      };
      description = "API keys for engines of kind http, by the engine's name: files with one key each, which the gateway gets as systemd credentials. It sets `key_file` of the engine.";
    };
    drainSec = lib.mkOption {
      type = lib.types.ints.positive;
      default = 90;
      example = 300;
      description = "Seconds that open streams may still run when the gateway stops.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = isLoopback || (own.enable && listen.host == own.address);
        message = ''
          appliance.settings.gateway.host = "${listen.host}" is neither loopback nor the tunnel address of this host;
          only the VPS is public: set it to "${if own.enable then own.address else "127.0.0.1"}".
        '';
      }
      {
        assertion = strangers == [ ];
        message = "appliance.gateway.engineKeys.${lib.concatStringsSep ", " strangers}: no engine of kind http of this host has that name (${lib.concatStringsSep ", " (lib.attrNames others)}): use the name of the engine.";
      }
      {
        assertion = listen.data_dir == dataDir;
        message = "appliance.settings.gateway.data_dir = \"${listen.data_dir}\" is not writable for its unit: leave it at ${dataDir}, and mount another disk there if necessary.";
      }
      {
        assertion = lib.all (e: e.shutdown_timeout_s <= cfg.drainSec) (lib.attrValues appliance.myEngines);
        message = "appliance.gateway.drainSec = ${toString cfg.drainSec} is less than an engine's shutdown_timeout_s: the gateway would cut streams that the engine still finishes: raise it to the largest of them.";
      }
    ];

    appliance.settings.gateway = {
      drain_timeout_s = cfg.drainSec;
    }
    // lib.optionalAttrs (onDemand != { }) { engine_control = lib.mkDefault "systemd"; };

    # By name, so that the address of a secret is not part of the site.
    appliance.settings.engines = lib.mapAttrs (name: _: {
      key_file = lib.mkDefault "/run/credentials/appliance-gateway.service/${engineKey name}";
    }) cfg.engineKeys;

    # The gateway may start and stop the units of engines, and no other unit.
    security.polkit = lib.mkIf (onDemand != { }) {
      enable = true;
      extraConfig = ''
        polkit.addRule(function(action, subject) {
          if (action.id == "org.freedesktop.systemd1.manage-units" && subject.user == "appliance-gateway" &&
              /^appliance-engine-[A-Za-z0-9._-]+[.]service$/.test(action.lookup("unit")) &&
              ["start", "stop"].indexOf(action.lookup("verb")) >= 0) {
            return polkit.Result.YES;
          }
        });
      '';
    };

    users.groups.appliance-gateway = { };
    # A static user: `appliance-keys` and the smoke test write to the same folder under the same owner.
    users.users.appliance-gateway = {
      isSystemUser = true;
      group = "appliance-gateway";
      description = "LLM gateway";
    };
    environment.variables.APPLIANCE_CONFIG = "/etc/appliance/appliance.json";
    environment.systemPackages = [
      appliance.package
      # Run as the gateway's user: a file of root in its folder would stop the gateway, and only that user may use the
      # control socket.
      (pkgs.writeShellScriptBin "appliance-gateway" ''
        exec ${lib.getExe' pkgs.util-linux "runuser"} -u appliance-gateway -- ${lib.getExe appliance.package} "$@"
      '')
      (pkgs.writeShellScriptBin "appliance-keys" ''
        exec ${lib.getExe' pkgs.util-linux "runuser"} -u appliance-gateway -- ${lib.getExe appliance.package} keys "$@"
      '')
    ];

    systemd.services.appliance-gateway = {
      description = "LLM gateway";
      wantedBy = [ "multi-user.target" ];
      after = [ "network-online.target" ] ++ lib.optional own.enable "wireguard-wg0.service";
      wants = [ "network-online.target" ];
      restartTriggers = [ appliance.configFile ];
      # systemctl, for on-demand engines, and nvidia-smi.
      path =
        lib.optional (onDemand != { }) pkgs.systemd
        ++ lib.optional readsCards config.hardware.nvidia.package;
      # It reads the header of a GGUF before a swap.
      environment.HF_HOME = appliance.models.store.path;
      # The address of the tunnel may appear late; the unit retries without a limit.
      unitConfig.StartLimitIntervalSec = 0;
      serviceConfig = hardened // {
        Type = "exec";
        User = "appliance-gateway";
        Group = "appliance-gateway";
        ExecStart = "${lib.getExe appliance.package} gateway --config /etc/appliance/appliance.json";
        StateDirectory = "appliance-gateway";
        StateDirectoryMode = "0700";
        WorkingDirectory = dataDir;
        Restart = "always";
        RestartSec = 1;
        # Streams finish before the process ends.
        KillMode = "mixed";
        TimeoutStopSec = cfg.drainSec + 10;
        # The acting sockets compare the account of each process that connects. With `true`, the gateway sees the uid
        # 65534 in place of every account but root's and its own.
        PrivateUsers = "identity";
        # One socket per client and one per stream of an engine.
        LimitNOFILE = 65536;
        # It serves HTTP and calls the engines: sockets to this host, to the peers of the tunnel, and to the listed
        # servers of kind http.
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
        IPAddressAllow = [
          "localhost"
        ]
        ++ lib.optional own.enable own.network
        ++ lib.unique (lib.mapAttrsToList (_: e: e.address) (lib.filterAttrs (_: e: e ? address) others));
        LoadCredential =
          credentials cfg.credentials
          ++ credentials (lib.mapAttrs' (name: lib.nameValuePair (engineKey name)) cfg.engineKeys);
      }
      // lib.optionalAttrs readsCards {
        inherit (cardAccess) PrivateDevices;
        DeviceAllow = [ "char-nvidia rw" ];
        # nvidia-smi reads /proc/driver/nvidia.
        ProcSubset = "all";
      };
    };
  };
}
