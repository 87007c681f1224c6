# The admin API and the operator's page: users, keys, usage, loaded models, alerts. A separate process on loopback,
# under the gateway's user.
{ config, lib, ... }:
let
  inherit (import ./lib.nix { inherit lib; }) hardened secretPath;
  inherit (config) appliance;
  cfg = appliance.admin;
  listen = appliance.settings.admin.host or "127.0.0.1";
in
{
  options.appliance.admin = {
    enable = lib.mkEnableOption "the admin API";
    tokenFile = lib.mkOption {
      type = lib.types.nullOr secretPath;
      default = null;
      example = "/run/secrets/admin-token";
      description = "File with the admin token of at least 16 characters; the unit gets it as a systemd credential.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.tokenFile != null;
        message = "appliance.admin.enable without a token: set appliance.admin.tokenFile to a file such as /run/secrets/admin-token (`openssl rand -hex 32` makes its content).";
      }
      {
        assertion = appliance.gateway.enable;
        message = "appliance.admin.enable without appliance.gateway.enable: it manages the gateway's keys; enable the gateway on this host, or disable the admin API.";
      }
      {
        assertion = lib.hasPrefix "127." listen || listen == "::1";
        message = "appliance.settings.admin.host = \"${listen}\" is not loopback: set it to 127.0.0.1 and connect with `ssh -L 8001:127.0.0.1:8001`.";
      }
    ];
    systemd.services.appliance-admin = {
      description = "Admin API of the LLM gateway";
      wantedBy = [ "multi-user.target" ];
      after = [ "appliance-gateway.service" ];
      restartTriggers = [ appliance.configFile ];
      # The operator's page shows the alerts that fire, or the notices that wait.
      environment =
        lib.optionalAttrs appliance.observe.enable {
          APPLIANCE_ALERTMANAGER_URL = "http://127.0.0.1:${toString config.services.prometheus.alertmanager.port}";
        }
        // lib.optionalAttrs appliance.notify.enable {
          APPLIANCE_NOTICES_DIR = "/var/lib/appliance-notices";
        };
      serviceConfig = hardened // {
        Type = "exec";
        User = "appliance-gateway";
        Group = "appliance-gateway";
        ExecStart = "${lib.getExe appliance.package} admin --config /etc/appliance/appliance.json";
        # The gateway's folder has the database and the gateway's control socket.
        StateDirectory = "appliance-gateway";
        StateDirectoryMode = "0700";
        WorkingDirectory = "/var/lib/appliance-gateway";
        Restart = "always";
        RestartSec = 2;
        # It serves HTTP to this host and calls the gateway over a Unix socket.
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
        IPAddressAllow = "localhost";
        # The outbox of notices belongs to the sender's group; the unit may only read it.
        SupplementaryGroups = lib.mkIf appliance.notify.enable [ "appliance-notify" ];
        LoadCredential = [ "admin-token:${cfg.tokenFile}" ];
      };
    };
  };
}
