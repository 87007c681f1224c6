# Web search: SearXNG and the fetcher on the VPS, and the assistant's way to them.
{ lib }:
let
  service = name: c: c.systemd.services.${name}.serviceConfig;
  search = more: {
    appliance.search = {
      enable = true;
      secretFile = "/run/secrets/searxng";
      keyFile = "/run/secrets/fetcher-key";
    }
    // more;
  };
  assistant = {
    appliance.assistant = {
      enable = true;
      searchKeyFile = "/run/secrets/fetcher-key";
    };
    appliance.settings.search = {
      url = "http://10.77.0.2:8888";
      fetcher_url = "http://10.77.0.2:8889";
    };
  };
  rules =
    c:
    map lib.trim (
      lib.filter (lib.hasInfix "8889") (
        lib.splitString "\n" c.networking.nftables.tables.appliance.content
      )
    );
in
{
  "a VPS has no web search by itself" = {
    host = "vps";
    gives = c: {
      fetcher = c.systemd.services ? appliance-fetcher;
      searxng = c.services.searx.enable or false;
      rules = rules c;
    };
    is = {
      fetcher = false;
      searxng = false;
      rules = [ ];
    };
  };
  "SearXNG listens in the tunnel, returns JSON, and has no limiter" = {
    host = "vps";
    module = search { };
    gives = c: {
      inherit (c.services.searx) enable environmentFile;
      inherit (c.services.searx.settings.search) formats;
      inherit (c.services.searx.settings.server)
        bind_address
        port
        limiter
        secret_key
        method
        ;
      inherit (service "searx" c) IPAddressAllow;
      private = lib.elem "10.0.0.0/8" (service "searx" c).IPAddressDeny;
    };
    is = {
      enable = true;
      environmentFile = "/run/secrets/searxng";
      formats = [
        "html"
        "json"
      ];
      bind_address = "10.77.0.2";
      port = 8888;
      limiter = false;
      secret_key = "$SEARXNG_SECRET";
      method = "POST";
      IPAddressAllow = [
        "10.77.0.1"
        "10.77.0.2"
      ];
      private = true;
    };
  };
  "the fetcher reaches no private network, and its socket is for the assistant's host only" = {
    host = "vps";
    module = search { denied = [ "203.0.113.7/32" ]; };
    gives = c: {
      command = builtins.match ".* (fetcher .*)" (service "appliance-fetcher" c).ExecStart;
      inherit (service "appliance-fetcher" c) DynamicUser LoadCredential;
      allowed = (service "appliance-fetcher" c).IPAddressAllow or [ ];
      denied = map (one: lib.elem one (service "appliance-fetcher" c).IPAddressDeny) [
        "10.0.0.0/8"
        "127.0.0.0/8"
        "169.254.0.0/16"
        "fc00::/7"
        "203.0.113.7/32"
      ];
      socket = {
        inherit (c.systemd.sockets.appliance-fetcher) listenStreams requires;
        inherit (c.systemd.sockets.appliance-fetcher.socketConfig) IPAddressAllow IPAddressDeny;
      };
    };
    is = {
      command = [
        "fetcher --listen 10.77.0.2 --port 8889 --deny 203.0.113.7/32 --key-file %d/fetcher-key"
      ];
      DynamicUser = true;
      LoadCredential = [ "fetcher-key:/run/secrets/fetcher-key" ];
      allowed = [ ];
      denied = [
        true
        true
        true
        true
        true
      ];
      socket = {
        listenStreams = [ "10.77.0.2:8889" ];
        requires = [ "nftables.service" ];
        IPAddressAllow = [
          "10.77.0.1"
          "10.77.0.2"
        ];
        IPAddressDeny = "any";
      };
    };
  };
  "only the peers of the tunnel reach the search" = {
    host = "vps";
    module = search { };
    gives = rules;
    is = [ "iifname \"wg0\" ip saddr { 10.77.0.1 } tcp dport { 8888, 8889 } accept" ];
  };
  "the doctor expects both ports in the tunnel only" = {
    host = "vps";
    module = search { };
    gives =
      c:
      map (o: [
        o.port
        o.interface
      ]) (lib.filter (o: o.by == "search") c.appliance.doctor.machineFile.value.firewall.openings);
    is = [
      [
        8888
        "wg0"
      ]
      [
        8889
        "wg0"
      ]
    ];
  };
  "the assistant reaches the web search and nothing else" = {
    host = "gpu";
    module = assistant;
    gives = c: {
      inherit (service "appliance-assistant" c)
        PrivateNetwork
        RestrictAddressFamilies
        IPAddressAllow
        IPAddressDeny
        LoadCredential
        ;
      inherit (c.appliance.settings) search;
    };
    is = {
      PrivateNetwork = false;
      RestrictAddressFamilies = [
        "AF_UNIX"
        "AF_INET"
      ];
      IPAddressAllow = [ "10.77.0.2" ];
      IPAddressDeny = "any";
      LoadCredential = [ "fetcher-key:/run/secrets/fetcher-key" ];
      search = {
        url = "http://10.77.0.2:8888";
        fetcher_url = "http://10.77.0.2:8889";
        key_file = "/run/credentials/appliance-assistant.service/fetcher-key";
      };
    };
  };
  "an assistant with a fetcher needs its key" = {
    host = "gpu";
    module.appliance = assistant.appliance // {
      assistant.enable = true;
    };
    refuses = "appliance.assistant.searchKeyFile is missing";
  };
  "an assistant with a search by name" = {
    host = "gpu";
    module = lib.recursiveUpdate assistant {
      appliance.settings.search.url = "http://searxng.example.org:8888";
    };
    refuses = "url and fetcher_url need an IPv4 address";
  };
  "a search without a secret" = {
    host = "vps";
    module = search { secretFile = null; };
    refuses = "appliance.search.secretFile is missing";
  };
  "a fetcher without a key" = {
    host = "vps";
    module = search { keyFile = null; };
    refuses = "appliance.search.keyFile is missing";
  };
  "a search without clients" = {
    host = "vps";
    module = search { clients = [ ]; };
    refuses = "appliance.search.clients is empty";
  };
  "a SearXNG without JSON" = {
    host = "vps";
    module = search { } // {
      services.searx.settings.search.formats = [ "html" ];
    };
    refuses = "services.searx.settings.search.formats has no json";
  };
  "a SearXNG on every address" = {
    host = "vps";
    module = search { } // {
      services.searx.settings.server.bind_address = "0.0.0.0";
    };
    refuses = "bind_address = \"0.0.0.0\": leave it at 10.77.0.2";
  };
  "a SearXNG with its limiter" = {
    host = "vps";
    module = search { } // {
      services.searx.settings.server.limiter = true;
    };
    refuses = "services.searx.settings.server.limiter is on";
  };
  "a SearXNG in the firewall of NixOS" = {
    host = "vps";
    module = search { } // {
      services.searx.openFirewall = true;
    };
    refuses = "both make SearXNG public";
  };
  "a key of the fetcher in the store" = {
    host = "vps";
    module = search { keyFile = "/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-key"; };
    forces = c: c.appliance.search.keyFile;
    errors = "absolute path outside the Nix store";
  };
}
