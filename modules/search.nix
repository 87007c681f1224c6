# Web search on the VPS: SearXNG, and the fetcher that reads pages. Both listen in the tunnel only. The fetcher refuses
# private addresses itself (appliance/search), and the kernel refuses them once more. For that, its listening socket
# belongs to a unit of its own: the unit of the process needs no access to a private network.
{
  config,
  lib,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; }) credentials hardened secretPath;
  inherit (config) appliance;
  cfg = appliance.search;
  wg = appliance.network.wireguard;
  inherit (lib) mkOption types;
  listen = if wg.enable then wg.address else "127.0.0.1";
  server = config.services.searx.settings.server;
  formats = config.services.searx.settings.search.formats;
  network = "[0-9a-fA-F:.]+/[0-9]{1,3}";
  # Each of them is in appliance/search/address_rule.py as well, which has more.
  private = [
    "0.0.0.0/8"
    "10.0.0.0/8"
    "100.64.0.0/10"
    "127.0.0.0/8"
    "169.254.0.0/16"
    "172.16.0.0/12"
    "192.168.0.0/16"
    "198.18.0.0/15"
    "224.0.0.0/4"
    "240.0.0.0/4"
    "::/3"
    "64:ff9b::/96"
    "2002::/16"
    "fc00::/7"
    "fe80::/10"
    "ff00::/8"
  ];
in
{
  options.appliance.search = {
    enable = lib.mkEnableOption "web search for the assistant: SearXNG and the page fetcher";
    port = mkOption {
      type = types.port;
      default = 8888;
      example = 8888;
      description = "Port of SearXNG; on the GPU host it is part of `settings.search.url`.";
    };
    fetcherPort = mkOption {
      type = types.port;
      default = 8889;
      example = 8889;
      description = "Port of the fetcher; on the GPU host it is part of `settings.search.fetcher_url`.";
    };
    clients = mkOption {
      type = types.listOf (types.strMatching "([0-9]{1,3}\\.){3}[0-9]{1,3}");
      default = if wg.enable then map (peer: peer.address) (lib.attrValues wg.peers) else [ "127.0.0.1" ];
      defaultText = lib.literalMD "the peers of the tunnel; `127.0.0.1` without a tunnel";
      example = [ "10.77.0.1" ];
      description = "Addresses that reach SearXNG and the fetcher: those of the hosts with an assistant.";
    };
    denied = mkOption {
      type = types.listOf (types.strMatching network);
      default = [ ];
      example = [ "203.0.113.7/32" ];
      description = "Public networks whose pages are never read, such as the address of your home. Addresses of this host are refused in any case.";
    };
    secretFile = mkOption {
      type = types.nullOr secretPath;
      default = null;
      example = "/run/secrets/searxng";
      description = "Secret with the line `SEARXNG_SECRET=` and random characters of your choice, and with the API keys that engines in `services.searx.settings` name.";
    };
    keyFile = mkOption {
      type = types.nullOr secretPath;
      default = null;
      example = "/run/secrets/fetcher-key";
      description = "Secret with the key of the fetcher, at least 16 characters. `appliance.assistant.searchKeyFile` of the GPU host has the same one.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.secretFile != null;
        message = "appliance.search.secretFile is missing: write SEARXNG_SECRET=... with random characters to a secret and name it.";
      }
      {
        assertion = cfg.keyFile != null;
        message = "appliance.search.keyFile is missing: without a key, every process that reaches the tunnel reads pages by the fetcher; make one with `openssl rand -hex 32` and name its file.";
      }
      {
        assertion = cfg.clients != [ ];
        message = "appliance.search.clients is empty: name the tunnel address of the host with the assistant, such as 10.77.0.1.";
      }
      {
        assertion = lib.elem "json" formats;
        message = "services.searx.settings.search.formats has no json: SearXNG would refuse the assistant's searches with 403; add it.";
      }
      {
        assertion = !server.limiter;
        message = "services.searx.settings.server.limiter is on: it refuses JSON; turn it off, since only the tunnel reaches SearXNG.";
      }
      {
        assertion = server.bind_address == listen;
        message = "services.searx.settings.server.bind_address = \"${server.bind_address}\": leave it at ${listen}, or the public network could reach SearXNG.";
      }
      {
        assertion = !config.services.searx.openFirewall && !(config.services.searx.configureNginx or false);
        message = "services.searx.openFirewall or configureNginx is on: both make SearXNG public; turn them off.";
      }
    ];

    services.searx = {
      enable = true;
      environmentFile = cfg.secretFile;
      settings = {
        general.debug = false;
        search.formats = lib.mkDefault [
          "html"
          "json"
        ];
        server = {
          bind_address = lib.mkDefault listen;
          inherit (cfg) port;
          # The init unit replaces it by the value in secretFile.
          secret_key = "$SEARXNG_SECRET";
          # It blocks JSON; only the tunnel reaches this server.
          limiter = lib.mkDefault false;
          public_instance = false;
          image_proxy = false;
          method = "POST";
        };
      };
    };

    systemd.services = {
      searx = {
        after = lib.optional wg.enable "wireguard-wg0.service";
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig = {
          Restart = "always";
          RestartSec = 5;
          # It reaches search engines, and no private network.
          IPAddressDeny = private;
          IPAddressAllow = cfg.clients ++ [ listen ];
          MemoryMax = "1G";
        };
      };

      appliance-fetcher = {
        description = "Reader of web pages for the assistant";
        # nscd resolves names: this unit reaches no private resolver.
        after = [
          "network-online.target"
          "nss-lookup.target"
        ];
        wants = [ "network-online.target" ];
        requires = [ "appliance-fetcher.socket" ];
        wantedBy = [ "multi-user.target" ];
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig = hardened // {
          Type = "notify";
          DynamicUser = true;
          ExecStart =
            "${lib.getExe appliance.package} fetcher --listen ${listen} --port ${toString cfg.fetcherPort}"
            + lib.concatMapStrings (one: " --deny ${one}") cfg.denied
            + " --key-file %d/fetcher-key";
          LoadCredential = credentials { fetcher-key = cfg.keyFile; };
          Restart = "always";
          RestartSec = 1;
          # Parsers of pages end with it.
          KillMode = "mixed";
          TimeoutStopSec = 15;
          MemoryMax = "2G";
          TasksMax = 256;
          RestrictAddressFamilies = [
            "AF_UNIX"
            "AF_INET"
            "AF_INET6"
          ];
          IPAddressDeny = private ++ cfg.denied;
        };
      };
    };

    # The addresses of this unit hold for its listening socket and its connections. Those of the service hold for the
    # sockets that the process makes itself.
    systemd.sockets.appliance-fetcher = {
      description = "Socket of the reader of web pages";
      wantedBy = [ "sockets.target" ];
      requires = lib.optional appliance.network.firewall.enable "nftables.service";
      after = lib.optional appliance.network.firewall.enable "nftables.service";
      listenStreams = [ "${listen}:${toString cfg.fetcherPort}" ];
      socketConfig = {
        # The tunnel may start later.
        FreeBind = true;
        IPAddressDeny = "any";
        IPAddressAllow = cfg.clients ++ [ listen ];
      };
    };
  };
}
