# Monitoring: each server on loopback, Grafana through the tunnel, targets of this site only.
{ lib }:
let
  jobs = c: map (one: one.job_name) c.services.prometheus.scrapeConfigs;
  targets =
    job: c:
    lib.concatMap (one: lib.concatMap (group: group.targets) one.static_configs) (
      lib.filter (one: one.job_name == job) c.services.prometheus.scrapeConfigs
    );
  withGrafana.appliance.observe.grafana = {
    adminPasswordFile = "/run/secrets/grafana-password";
    secretKeyFile = "/run/secrets/grafana-secret-key";
  };
  firewall = c: c.networking.nftables.tables.appliance.content;
in
{
  "monitoring listens on loopback only" = {
    host = "gpu";
    module.appliance.observe.publicUrl = "https://llm.example.org";
    gives = c: {
      prometheus = c.services.prometheus.listenAddress;
      alertmanager = c.services.prometheus.alertmanager.listenAddress;
      node = c.services.prometheus.exporters.node.listenAddress;
      blackbox = c.services.prometheus.exporters.blackbox.listenAddress;
      cluster = c.services.prometheus.alertmanager.extraFlags;
    };
    is = {
      prometheus = "127.0.0.1";
      alertmanager = "127.0.0.1";
      node = "127.0.0.1";
      blackbox = "127.0.0.1";
      cluster = [ "--cluster.listen-address=" ];
    };
  };
  "a GPU host scrapes its gateway and each replica of vLLM" = {
    host = "gpu";
    gives = c: {
      jobs = jobs c;
      gateway = targets "gateway" c;
      engines = targets "engine" c;
      labels = lib.concatMap (
        one: map (group: group.labels.engine or null) one.static_configs
      ) (lib.filter (one: one.job_name == "engine") c.services.prometheus.scrapeConfigs);
    };
    is = {
      jobs = [
        "prometheus"
        "alertmanager"
        "node"
        "gateway"
        "engine"
      ];
      gateway = [ "10.77.0.1:8000" ];
      engines = [
        "127.0.0.1:8101"
        "127.0.0.1:8102"
      ];
      labels = [
        "agents.0"
        "agents.1"
      ];
    };
  };
  "an engine without a page of metrics is not a target" = {
    host = "gpu";
    module.appliance.settings.engines.agents = {
      kind = "mock";
      device = lib.mkForce "cpu";
      gpus = lib.mkForce [ ];
      options = lib.mkForce { };
    };
    gives = jobs;
    is = [
      "prometheus"
      "alertmanager"
      "node"
      "gateway"
    ];
  };
  "the public address is probed at a path that needs the gateway" = {
    host = "gpu";
    module.appliance.observe.publicUrl = "https://llm.example.org";
    gives = targets "public";
    is = [ "https://llm.example.org/v1/models" ];
  };
  "a public address with a path" = {
    host = "gpu";
    module.appliance.observe.publicUrl = "https://llm.example.org/v1";
    errors = "appliance.observe.publicUrl";
  };
  "a public address without TLS" = {
    host = "gpu";
    module.appliance.observe.publicUrl = "http://llm.example.org";
    errors = "appliance.observe.publicUrl";
  };
  "a public address with a query" = {
    host = "gpu";
    module.appliance.observe.publicUrl = "https://llm.example.org?x";
    errors = "appliance.observe.publicUrl";
  };
  "monitoring without a gateway" = {
    host = "gpu";
    module.appliance = {
      gateway.enable = lib.mkForce false;
      smoke.enable = lib.mkForce false;
    };
    refuses = "appliance.observe.enable without appliance.gateway.enable";
  };
  "Grafana is off without its secrets" = {
    host = "gpu";
    gives = c: {
      inherit (c.services.grafana) enable;
      open = lib.hasInfix "dport 3000" (firewall c);
    };
    is = {
      enable = false;
      open = false;
    };
  };
  "Grafana without its secrets" = {
    host = "gpu";
    module.appliance.observe.grafana.enable = true;
    refuses = "appliance.observe.grafana needs adminPasswordFile and secretKeyFile";
  };
  "Grafana with one of its secrets" = {
    host = "gpu";
    module.appliance.observe.grafana = {
      enable = true;
      adminPasswordFile = "/run/secrets/grafana-password";
    };
    refuses = "appliance.observe.grafana needs adminPasswordFile and secretKeyFile";
  };
  "Grafana without its password" = {
    host = "gpu";
    module.appliance.observe.grafana = {
      enable = true;
      secretKeyFile = "/run/secrets/grafana-secret-key";
    };
    refuses = "appliance.observe.grafana needs adminPasswordFile and secretKeyFile";
  };
  "Grafana without monitoring" = {
    host = "gpu";
    module = lib.recursiveUpdate withGrafana {
      appliance.observe = {
        enable = lib.mkForce false;
        grafana.enable = true;
      };
    };
    refuses = "appliance.observe.grafana.enable without appliance.observe.enable";
  };
  "a password of Grafana in the store" = {
    host = "gpu";
    module.appliance.observe.grafana.adminPasswordFile = ./observe.nix;
    errors = "absolute path outside the Nix store";
  };
  "a key of Grafana in the store" = {
    host = "gpu";
    module = lib.recursiveUpdate withGrafana {
      appliance.observe.grafana.secretKeyFile = ./observe.nix;
    };
    errors = "absolute path outside the Nix store";
  };
  "Grafana on the address of the LAN" = {
    host = "gpu";
    module = lib.recursiveUpdate withGrafana { appliance.observe.grafana.host = "192.168.1.5"; };
    refuses = "is neither loopback nor the tunnel address of this host: set it to \"10.77.0.1\"";
  };
  "Grafana on a public address" = {
    host = "gpu";
    module = lib.recursiveUpdate withGrafana { appliance.observe.grafana.host = "0.0.0.0"; };
    refuses = "appliance.observe.grafana.host = \"0.0.0.0\" is neither loopback nor the tunnel address";
  };
  "the checklist of the doctor has Prometheus and the public address" = {
    host = "gpu";
    module = lib.recursiveUpdate withGrafana { appliance.observe.publicUrl = "https://llm.example.org"; };
    gives = c: c.appliance.doctor.machineFile.value.observed;
    is = {
      prometheus = 9090;
      public_url = "https://llm.example.org";
    };
  };
  "Grafana listens on the tunnel, which alone reaches it" = {
    host = "gpu";
    module = withGrafana;
    gives = c: {
      address = c.services.grafana.settings.server.http_addr;
      open = lib.filter (lib.hasInfix "dport 3000") (lib.splitString "\n" (firewall c));
      opening = lib.filter (one: one.by == "grafana") c.appliance.doctor.machineFile.value.firewall.openings;
      closed = lib.elem "nftables.service" c.systemd.services.grafana.requires;
    };
    is = {
      address = "10.77.0.1";
      open = [ "    iifname \"wg0\" ip saddr { 10.77.0.2 } tcp dport 3000 accept" ];
      opening = [
        {
          protocol = "tcp";
          port = 3000;
          by = "grafana";
          interface = "wg0";
        }
      ];
      closed = true;
    };
  };
  "Grafana gets its secrets as credentials" = {
    host = "gpu";
    module = withGrafana;
    gives = c: {
      inherit (c.systemd.services.grafana.serviceConfig) LoadCredential;
      password = c.services.grafana.settings.security.admin_password;
      key = c.services.grafana.settings.security.secret_key;
    };
    is = {
      LoadCredential = [
        "admin-password:/run/secrets/grafana-password"
        "secret-key:/run/secrets/grafana-secret-key"
      ];
      password = "$__file{/run/credentials/grafana.service/admin-password}";
      key = "$__file{/run/credentials/grafana.service/secret-key}";
    };
  };
  "Grafana contacts no other server" = {
    host = "gpu";
    module = withGrafana;
    gives =
      c:
      let
        inherit (c.services.grafana) settings;
      in
      [
        settings.analytics.reporting_enabled
        settings.analytics.check_for_updates
        settings.analytics.check_for_plugin_updates
        settings.news.news_feed_enabled
        settings.plugins.plugin_admin_enabled
        settings.snapshots.external_enabled
        settings."auth.anonymous".enabled
        (!settings.security.disable_gravatar)
        (!settings.plugins.preinstall_disabled)
      ];
    is = lib.genList (_: false) 9;
  };
  "the units of monitoring start again after a long outage" = {
    host = "gpu";
    module = withGrafana;
    gives =
      c:
      lib.genAttrs [ "prometheus" "alertmanager" "grafana" "prometheus-node-exporter" ] (
        name: c.systemd.services.${name}.startLimitIntervalSec
      );
    is = {
      prometheus = 0;
      alertmanager = 0;
      grafana = 0;
      prometheus-node-exporter = 0;
    };
  };
  "the rules and dashboards are those of the repository" = {
    host = "gpu";
    module = withGrafana;
    gives =
      c:
      let
        inherit (c.services.grafana.provision) dashboards datasources;
      in
      {
        rules = map baseNameOf c.services.prometheus.ruleFiles;
        boards = map (one: baseNameOf one.options.path) dashboards.settings.providers;
        source = map (one: one.url) datasources.settings.datasources;
      };
    is = {
      rules = [ "rules.json" ];
      boards = [ "dashboards" ];
      source = [ "http://127.0.0.1:9090" ];
    };
  };
  "messages have no receiver without the sender of notices" = {
    host = "gpu";
    gives =
      c:
      lib.concatMap (
        one: one.webhook_configs or [ ]
      ) c.services.prometheus.alertmanager.configuration.receivers;
    is = [ ];
  };
  "the rescue system has no monitoring, and without a public address no host probes one" = {
    host = "gpu";
    gives =
      c:
      let
        given = c.specialisation.rescue.configuration.appliance.observe.enable;
      in
      {
        rescue = given.content or given;
        blackbox = c.services.prometheus.exporters.blackbox.enable;
      };
    is = {
      rescue = false;
      blackbox = false;
    };
  };
}
