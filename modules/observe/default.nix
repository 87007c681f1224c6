# Monitoring of the GPU server: Prometheus, Alertmanager and exporters on loopback, Grafana through the tunnel only.
# rules.json, routing.json and dashboards/ are made by `python -m tools.alerts`; appliance/watch/alerts.py has the
# reasons. Every server listens on loopback, except Grafana.
{
  config,
  lib,
  ...
}:
let
  inherit (config) appliance;
  cfg = appliance.observe;
  inherit (lib) mkOption types;
in
{
  imports = [
    ./metrics.nix
    ./prometheus.nix
    ./alertmanager.nix
    ./grafana.nix
  ];

  options.appliance.observe = {
    enable = lib.mkEnableOption "monitoring: Prometheus, Alertmanager, exporters on loopback, and the dashboards";
    retention = mkOption {
      type = types.strMatching "[1-9][0-9]*[dwy]";
      default = "90d";
      example = "1y";
      description = "Time for which Prometheus keeps samples.";
    };
    maxSize = mkOption {
      type = types.strMatching "[1-9][0-9]*(MB|GB|TB)";
      default = "10GB";
      example = "30GB";
      description = "Size of the samples on disk, above which Prometheus deletes the oldest ones.";
    };
    publicUrl = mkOption {
      type = types.nullOr (types.strMatching "https://[^/ ?#]+");
      default = null;
      example = "https://llm.example.org";
      description = "Public address of the service, without a path. It is probed through the Internet every 30 seconds; null for none.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = appliance.gateway.enable;
        message = "appliance.observe.enable without appliance.gateway.enable: its alerts report a missing gateway for ever: enable the gateway, or disable observe on this host.";
      }
    ];
  };
}
