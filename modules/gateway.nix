# The gateway: one process, loopback or the tunnel's address, nothing of the machine in sight.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; }) credentials hardened secretPath;
  inherit (config) appliance;
  cfg = appliance.gateway;
  listen = appliance.settings.gateway;
  dataDir = "/var/lib/appliance-gateway";
  own = appliance.network.wireguard;
  onDemand = lib.filterAttrs (_: e: e.residency == "on-demand") appliance.myEngines;
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
      description = "Secrets given to the gateway as systemd credentials, by name; it reads them from $CREDENTIALS_DIRECTORY.";
    };
    drainSec = lib.mkOption {
      type = lib.types.ints.positive;
      default = 90;
      example = 300;
      description = "Seconds that open streams get when the gateway stops.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = isLoopback || (own.enable && listen.host == own.address);
        message = ''
          appliance.settings.gateway.host = "${listen.host}" is neither loopback nor this host's tunnel address:
          the VPS is the public side. Set it to "${if own.enable then own.address else "127.0.0.1"}".
        '';
      }
      {
        assertion = listen.data_dir == dataDir;
        message = "appliance.settings.gateway.data_dir = \"${listen.data_dir}\" is outside what its unit may write: leave it at ${dataDir} and mount another disk there if need be.";
      }
      {
        assertion = lib.all (e: e.shutdown_timeout_s <= cfg.drainSec) (lib.attrValues appliance.myEngines);
        message = "appliance.gateway.drainSec = ${toString cfg.drainSec} is less than an engine's shutdown_timeout_s: the gateway would cut streams that the engine still finishes; raise it to the largest of them.";
      }
    ];

    appliance.settings.gateway = {
      drain_timeout_s = cfg.drainSec;
    }
    // lib.optionalAttrs (onDemand != { }) { engine_control = lib.mkDefault "systemd"; };

    # The gateway may start and stop the engines' units, and nothing else of systemd.
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
    # A user of its own, not a dynamic one: `appliance-keys` and the smoke test write beside it, under the same owner.
    users.users.appliance-gateway = {
      isSystemUser = true;
      group = "appliance-gateway";
      description = "LLM gateway";
    };
    environment.variables.APPLIANCE_CONFIG = "/etc/appliance/appliance.json";
    environment.systemPackages = [
      appliance.package
      # As the gateway's user: a file that root made in its folder would stop it, and its socket is its own.
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
      # systemctl, for engines on demand.
      path = lib.optional (onDemand != { }) pkgs.systemd;
      # The tunnel's address may come late; it tries again for as long as that takes.
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
        # Streams finish before the process does.
        KillMode = "mixed";
        TimeoutStopSec = cfg.drainSec + 10;
        # One socket per client and one per engine stream.
        LimitNOFILE = 65536;
        # It serves HTTP and calls the engines: sockets, to this host and to the tunnel's peers only.
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
        IPAddressAllow = [ "localhost" ] ++ lib.optional own.enable own.network;
        LoadCredential = credentials cfg.credentials;
      };
    };
  };
}
