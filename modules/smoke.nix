# Proves the machine once it is up: a load of real requests through the gateway, held to the SLO.
#
# The seam for trial boots: what shall follow a pass or a failure is a unit named below. Nothing follows yet;
# a failure is reported (a failed unit) and changes nothing.
{ config, lib, pkgs, ... }:
let
  inherit (config) appliance;
  cfg = appliance.smoke;
  inherit (lib) mkOption types;
  engineUnits = map (name: "${name}.service") (lib.filter (lib.hasPrefix "appliance-engine-") (lib.attrNames (lib.filterAttrs (_: unit: unit.wantedBy != [ ]) config.systemd.services)));
  # A key for an hour, made by the gateway's own user and handed over in the environment: it stands in no file
  # and no argument list.
  run = pkgs.writeShellScript "appliance-smoke" ''
    set -eu
    APPLIANCE_API_KEY=$(${lib.getExe appliance.package} keys create smoke --expires-in 1h --config /etc/appliance/appliance.json)
    export APPLIANCE_API_KEY
    exec ${lib.getExe appliance.package} smoke --config /etc/appliance/appliance.json
  '';
  slowest = lib.foldl' lib.max 600 (lib.mapAttrsToList (_: e: e.start_timeout_s) appliance.myEngines);
in
{
  options.appliance.smoke = {
    enable = lib.mkEnableOption "the smoke test after boot";
    when = mkOption {
      type = types.enum [ "first-boot" "every-boot" ];
      default = "every-boot";
      example = "first-boot";
      description = "Whether each boot proves the machine, or only the first one after installing.";
    };
    onPass = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "appliance-bless.service" ];
      description = "Units to start once it has passed.";
    };
    onFail = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "appliance-rollback.service" ];
      description = "Units to start once it has failed.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = appliance.gateway.enable;
        message = "appliance.smoke.enable without appliance.gateway.enable: the smoke test asks the gateway; enable it, or switch the test off on this host.";
      }
    ];
    systemd.services.appliance-smoke = {
      description = "Smoke test of the whole service";
      wantedBy = [ "multi-user.target" ];
      after = [ "appliance-gateway.service" ] ++ engineUnits;
      wants = [ "appliance-gateway.service" ] ++ engineUnits;
      onSuccess = cfg.onPass;
      onFailure = cfg.onFail;
      unitConfig = lib.optionalAttrs (cfg.when == "first-boot") {
        ConditionPathExists = "!/var/lib/appliance-smoke/passed";
      };
      # A live switch must not load a busy machine with test requests.
      restartIfChanged = false;
      serviceConfig = appliance.lib.hardened // {
        Type = "oneshot";
        RemainAfterExit = true;
        User = "appliance-gateway";
        Group = "appliance-gateway";
        ExecStart = run;
        ExecStartPost = "/run/current-system/sw/bin/touch /var/lib/appliance-smoke/passed";
        # The gateway's folder: where keys are, and where the test leaves its report.
        StateDirectory = [ "appliance-smoke" "appliance-gateway" ];
        StateDirectoryMode = "0700";
        WorkingDirectory = "/var/lib/appliance-smoke";
        # The load generator watches its own CPU time, to say when it is the bottleneck.
        ProcSubset = "all";
        # The slowest engine's start, then the requests themselves.
        TimeoutStartSec = slowest + 600;
        # It is a client of the gateway: sockets, to this host and the tunnel's own address.
        RestrictAddressFamilies = [ "AF_UNIX" "AF_INET" "AF_INET6" ];
        IPAddressAllow = [ "localhost" ] ++ lib.optional appliance.network.wireguard.enable appliance.network.wireguard.address;
      };
    };
  };
}
