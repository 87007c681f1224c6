# The metrics of the machine and of the agents: node_exporter reads the agents' text files, the blackbox exporter probes
# the public address. Both listen on loopback.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.appliance.observe;
  # Agents without a port of their own write here; appliance/watch/metric_names.py has the names.
  folder = "/run/appliance-metrics";
  format = pkgs.formats.json { };
in
{
  config = lib.mkIf cfg.enable {
    systemd.tmpfiles.rules = [ "d ${folder} 0755 root root" ];

    services.prometheus.exporters = {
      node = {
        enable = true;
        listenAddress = "127.0.0.1";
        # The states of units, for the alert about failed ones.
        enabledCollectors = [ "systemd" ];
        extraFlags = [
          "--collector.textfile.directory=${folder}"
          # Thousands of series without use.
          "--collector.systemd.unit-exclude=.+[.](automount|device|mount|path|scope|slice|swap|target)"
        ];
      };
      blackbox = lib.mkIf (cfg.publicUrl != null) {
        enable = true;
        listenAddress = "127.0.0.1";
        configFile = format.generate "blackbox.yml" {
          modules.public = {
            prober = "http";
            timeout = "8s";
            http = {
              method = "GET";
              # Without a key, the gateway itself responds with 401: it proves edge, certificate, tunnel and gateway.
              valid_status_codes = [ 401 ];
              fail_if_not_ssl = true;
              follow_redirects = false;
              preferred_ip_protocol = "ip4";
            };
          };
        };
      };
    };

    # A machine that was without network or disk for hours must not need an operator.
    systemd.services = {
      prometheus-node-exporter = {
        startLimitIntervalSec = 0;
        serviceConfig.RestartSec = 5;
      };
    }
    // lib.optionalAttrs (cfg.publicUrl != null) {
      prometheus-blackbox-exporter = {
        startLimitIntervalSec = 0;
        serviceConfig.RestartSec = 5;
      };
    };
  };
}
