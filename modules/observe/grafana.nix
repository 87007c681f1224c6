# Grafana: the dashboards, on the tunnel's address only. It sends nothing to its maker and loads no plugin.
{ config, lib, ... }:
let
  inherit (import ../lib.nix { inherit lib; }) credentials secretPath;
  inherit (config) appliance;
  cfg = appliance.observe.grafana;
  own = appliance.network.wireguard;
  inherit (lib) mkOption types;
  isLoopback = lib.hasPrefix "127." cfg.host || cfg.host == "::1";
  secrets = {
    admin-password = cfg.adminPasswordFile;
    secret-key = cfg.secretKeyFile;
  };
  credential = name: "$__file{/run/credentials/grafana.service/${name}}";
in
{
  options.appliance.observe.grafana = {
    enable = mkOption {
      type = types.bool;
      default = appliance.observe.enable && cfg.adminPasswordFile != null && cfg.secretKeyFile != null;
      defaultText = lib.literalMD "true if monitoring is enabled and both files are set";
      example = true;
      description = "Whether to serve the dashboards.";
    };
    host = mkOption {
      type = types.str;
      default = if own.enable then own.address else "127.0.0.1";
      defaultText = lib.literalMD "the tunnel's address of this host, else loopback";
      example = "127.0.0.1";
      description = "Address on which Grafana listens: that of the tunnel, or loopback.";
    };
    port = mkOption {
      type = types.port;
      default = 3000;
      example = 3001;
      description = "Port on which Grafana listens.";
    };
    adminPasswordFile = mkOption {
      type = types.nullOr secretPath;
      default = null;
      example = "/run/secrets/grafana-password";
      description = "File with the password of the user `admin`. Grafana reads it at its first start; later, change it in Grafana.";
    };
    secretKeyFile = mkOption {
      type = types.nullOr secretPath;
      default = null;
      example = "/run/secrets/grafana-secret-key";
      description = "File with a random key, with which Grafana encrypts secrets in its database. Keep it: it is hard to change.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = appliance.observe.enable;
        message = "appliance.observe.grafana.enable without appliance.observe.enable: there is nothing to show; enable appliance.observe.";
      }
      {
        assertion = cfg.adminPasswordFile != null && cfg.secretKeyFile != null;
        message = "appliance.observe.grafana needs adminPasswordFile and secretKeyFile: its default password is public; put both into /run/secrets, as `openssl rand -hex 32` makes them.";
      }
      {
        assertion = isLoopback || (own.enable && cfg.host == own.address);
        message = "appliance.observe.grafana.host = \"${cfg.host}\" is neither loopback nor the tunnel address of this host: set it to \"${
          if own.enable then own.address else "127.0.0.1"
        }\".";
      }
    ];

    services.grafana = {
      enable = true;
      settings = {
        server = {
          http_addr = cfg.host;
          http_port = cfg.port;
        };
        security = {
          admin_password = credential "admin-password";
          secret_key = credential "secret-key";
          # It would send a hash of the address of each user.
          disable_gravatar = true;
          cookie_samesite = "strict";
        };
        users.allow_sign_up = false;
        "auth.anonymous".enabled = false;
        analytics = {
          reporting_enabled = false;
          check_for_updates = false;
          check_for_plugin_updates = false;
          feedback_links_enabled = false;
        };
        plugins = {
          plugin_admin_enabled = false;
          preinstall_disabled = true;
          public_key_retrieval_disabled = true;
        };
        news.news_feed_enabled = false;
        snapshots.external_enabled = false;
        # Alerts are those of Prometheus; appliance/watch/alerts.py has them.
        unified_alerting.enabled = false;
      };
      provision = {
        enable = true;
        datasources.settings = {
          apiVersion = 1;
          datasources = [
            {
              name = "Prometheus";
              type = "prometheus";
              uid = "prometheus";
              url = "http://127.0.0.1:${toString config.services.prometheus.port}";
              isDefault = true;
              editable = false;
              # The scrape interval, from which Grafana computes $__rate_interval.
              jsonData.timeInterval = "15s";
            }
          ];
        };
        dashboards.settings = {
          apiVersion = 1;
          providers = [
            {
              name = "appliance";
              options.path = ./dashboards;
              allowUiUpdates = false;
              disableDeletion = true;
            }
          ];
        };
      };
    };

    systemd.services.grafana = {
      after = lib.optional own.enable "wireguard-wg0.service";
      # The address of the tunnel may appear late; the unit retries without a limit.
      startLimitIntervalSec = 0;
      serviceConfig = {
        RestartSec = 5;
        LoadCredential = credentials secrets;
      };
    };
  };
}
