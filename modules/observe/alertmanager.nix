# Alertmanager: it groups alerts, silences the effects of a reported cause, and posts to the sender of notices on
# loopback (appliance.notify). The alert that always fires is posted to the dead man's switch on the VPS.
{ config, lib, ... }:
let
  inherit (config) appliance;
  cfg = appliance.observe;
  inherit (appliance) notify;
  deadman = notify.deadman.url;
  webhook = url: {
    webhook_configs = [
      {
        inherit url;
        send_resolved = true;
      }
    ];
  };
in
{
  config = lib.mkIf cfg.enable {
    services.prometheus.alertmanager = {
      enable = true;
      listenAddress = "127.0.0.1";
      # Without the flag, it listens on every address for other Alertmanagers.
      extraFlags = [ "--cluster.listen-address=" ];
      configuration = lib.importJSON ./routing.json // {
        receivers = [
          (
            {
              name = "notices";
            }
            // lib.optionalAttrs notify.enable (
              webhook "http://127.0.0.1:${toString notify.webhookPort}/alerts"
            )
          )
          ({ name = "beat"; } // lib.optionalAttrs (deadman != null) (webhook "${deadman}/beat"))
        ];
      };
    };

    systemd.services.alertmanager = {
      # A machine that was without network or disk for hours must not need an operator.
      startLimitIntervalSec = 0;
      serviceConfig.RestartSec = 5;
    };
  };
}
