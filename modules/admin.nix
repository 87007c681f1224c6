# The admin API: keys, usage, what is loaded. A process beside the gateway and under its user, on loopback.
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
      description = "File that holds the admin token, at least 16 characters; handed over as a systemd credential.";
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
        message = "appliance.admin.enable without appliance.gateway.enable: it keeps the gateway's keys; enable the gateway on this host, or switch the admin API off.";
      }
      {
        assertion = lib.hasPrefix "127." listen || listen == "::1";
        message = "appliance.settings.admin.host = \"${listen}\" is not loopback: reach it with `ssh -L 8001:127.0.0.1:8001`, and leave it at 127.0.0.1.";
      }
    ];
    systemd.services.appliance-admin = {
      description = "Admin API of the LLM gateway";
      wantedBy = [ "multi-user.target" ];
      after = [ "appliance-gateway.service" ];
      restartTriggers = [ appliance.configFile ];
      serviceConfig = hardened // {
        Type = "exec";
        User = "appliance-gateway";
        Group = "appliance-gateway";
        ExecStart = "${lib.getExe appliance.package} admin --config /etc/appliance/appliance.json";
        # The gateway's folder: the database, and the socket that the gateway listens on.
        StateDirectory = "appliance-gateway";
        StateDirectoryMode = "0700";
        WorkingDirectory = "/var/lib/appliance-gateway";
        Restart = "always";
        RestartSec = 2;
        # It serves HTTP to this host, and asks the gateway over a Unix socket.
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
        IPAddressAllow = "localhost";
        LoadCredential = [ "admin-token:${cfg.tokenFile}" ];
      };
    };
  };
}
