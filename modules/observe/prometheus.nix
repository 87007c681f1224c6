# Prometheus: it scrapes the gateway, the engines of this host, the exporters and the dead man's switch.
{ config, lib, ... }:
let
  inherit (config) appliance;
  cfg = appliance.observe;
  inherit (appliance.settings) gateway;
  deadman = appliance.notify.deadman.url;
  host = if lib.hasInfix ":" gateway.host then "[${gateway.host}]" else gateway.host;

  job = job_name: targets: {
    inherit job_name;
    static_configs = [ { inherit targets; } ];
  };
  # Only vLLM has a page of metrics. An engine that is not loaded has none; the gateway reports engines that are down.
  replicas = lib.concatLists (
    lib.mapAttrsToList (
      name: engine:
      map (index: {
        targets = [ "127.0.0.1:${toString (engine.port + index)}" ];
        labels.engine = if engine.replicas == 1 then name else "${name}.${toString index}";
      }) (lib.range 0 (engine.replicas - 1))
    ) (lib.filterAttrs (_: engine: engine.kind == "vllm") appliance.myEngines)
  );
in
{
  config = lib.mkIf cfg.enable {
    services.prometheus = {
      enable = true;
      listenAddress = "127.0.0.1";
      retentionTime = cfg.retention;
      extraFlags = [
        "--storage.tsdb.retention.size=${cfg.maxSize}"
        # Alertmanager forgets an alert after four times this period: the dead man's switch then sees that Prometheus
        # has ended.
        "--rules.alert.resend-delay=15s"
      ];
      globalConfig = {
        # SCRAPE_S of appliance/watch/alerts.py
        scrape_interval = "15s";
        evaluation_interval = "15s";
      };
      ruleFiles = [ ./rules.json ];
      alertmanagers = [
        {
          static_configs = [
            { targets = [ "127.0.0.1:${toString config.services.prometheus.alertmanager.port}" ]; }
          ];
        }
      ];
      scrapeConfigs = [
        (job "prometheus" [ "127.0.0.1:${toString config.services.prometheus.port}" ])
        (job "alertmanager" [ "127.0.0.1:${toString config.services.prometheus.alertmanager.port}" ])
        (job "node" [ "127.0.0.1:${toString config.services.prometheus.exporters.node.port}" ])
        (job "gateway" [ "${host}:${toString gateway.port}" ])
      ]
      ++ lib.optional (replicas != [ ]) {
        job_name = "engine";
        static_configs = replicas;
      }
      ++ lib.optional (cfg.publicUrl != null) {
        job_name = "public";
        scrape_interval = "30s";
        metrics_path = "/probe";
        params.module = [ "public" ];
        static_configs = [ { targets = [ "${cfg.publicUrl}/v1/models" ]; } ];
        relabel_configs = [
          {
            source_labels = [ "__address__" ];
            target_label = "__param_target";
          }
          {
            source_labels = [ "__param_target" ];
            target_label = "instance";
          }
          {
            target_label = "__address__";
            replacement = "127.0.0.1:${toString config.services.prometheus.exporters.blackbox.port}";
          }
        ];
      }
      ++ lib.optional (deadman != null) (job "deadman" [ (lib.removePrefix "http://" deadman) ]);
    };

    systemd.services.prometheus = {
      # A machine that was without network or disk for hours must not need an operator.
      startLimitIntervalSec = 0;
      serviceConfig.RestartSec = 5;
    };
  };
}
