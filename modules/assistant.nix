# The assistant: conversations, files and memory behind the gateway. A process of its own with a user of its own: it
# parses files of clients, and it has no access to keys.
{
  config,
  lib,
  options,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; }) credentials hardened secretPath;
  inherit (config) appliance;
  cfg = appliance.assistant;
  user = "appliance-assistant";
  dataDir = "/var/lib/${user}";
  settings = appliance.settings.assistant or { };
  url = settings.database_url or null;
  sockets = {
    socket = "/run/${user}/assistant.sock";
    acting_socket = "/run/appliance-acting/acting.sock";
  };
  qdrant = config.services.qdrant.settings.service;
  qdrantUrl = "http://127.0.0.1:${toString qdrant.http_port}";
  qdrantKey = "/run/credentials/appliance-assistant.service/qdrant-key";
  # Web search is on another host: its addresses are those of the tunnel.
  search = appliance.settings.search or null;
  addressOf = url: builtins.match "https?://([0-9.]+)(:[0-9]+)?/?" url;
  searchUrls = lib.optionals (search != null) (
    lib.filter (url: url != null) [
      search.url
      (search.fetcher_url or null)
    ]
  );
  searchAddresses = lib.unique (
    lib.concatMap (url: lib.optionals (addressOf url != null) [ (lib.head (addressOf url)) ]) searchUrls
  );
  metrics = "/run/${user}-metrics";
  command = lib.getExe appliance.package;
  site = "--config /etc/appliance/appliance.json";
  engines = lib.attrValues (appliance.settings.engines or { });
  # Without hosts that only have ranks of an engine of another host: these run no gateway.
  gpuHosts = lib.attrNames (
    lib.filterAttrs (
      name: host:
      (host.gpus or [ ]) != [ ]
      && (lib.any (e: e.host == name) engines || !(lib.any (e: lib.elem name e.nodes) engines))
    ) (appliance.settings.hosts or { })
  );
  # A role enables the assistant with mkDefault, and the operator with a higher priority.
  chosen = options.appliance.assistant.enable.highestPrio < (lib.mkDefault true).priority;
  own = hardened // {
    User = user;
    Group = user;
    StateDirectory = user;
    StateDirectoryMode = "0700";
    WorkingDirectory = dataDir;
    # Both sockets are files. A PostgreSQL must be one, too: this process needs no network.
    PrivateNetwork = true;
  };
in
{
  options.appliance.assistant = {
    enable = lib.mkEnableOption "the assistant: conversations, files and memory for the clients of the gateway";
    searchKeyFile = lib.mkOption {
      type = lib.types.nullOr secretPath;
      default = null;
      example = "/run/secrets/fetcher-key";
      description = "Secret with the key of the page fetcher, as `appliance.search.keyFile` of its host; for `settings.search`.";
    };
    qdrant = {
      enable = lib.mkEnableOption "a Qdrant server on loopback, which searches the vectors of stores above `settings.assistant.exact_limit` passages";
      keyFile = lib.mkOption {
        type = lib.types.nullOr secretPath;
        default = null;
        example = "/run/secrets/qdrant-key";
        description = "Secret with one line, `QDRANT__SERVICE__API_KEY=` and a key of your choice; the server and the assistant read it.";
      };
      memoryMax = lib.mkOption {
        type = lib.types.strMatching "[1-9][0-9]*[MGT]";
        default = "8G";
        example = "24G";
        description = "Memory of the server, above which the kernel ends it; vectors are on disk, their graphs in memory.";
      };
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = chosen || lib.length gpuHosts < 2;
        message = "appliance.assistant.enable is not set, and the site has several GPU hosts (${lib.concatStringsSep ", " gpuHosts}): each would have conversations of its own, and an edge distributes requests. Set it to true on one host, name that host alone in network.edge.gateways of the edge for clients with state, and set it to false on the others.";
      }
      {
        assertion = appliance.gateway.enable;
        message = "appliance.assistant.enable without appliance.gateway.enable: the gateway authenticates its requests; enable the gateway on this host, or disable the assistant.";
      }
      {
        assertion = (settings.data_dir or dataDir) == dataDir;
        message = "appliance.settings.assistant.data_dir = \"${settings.data_dir}\" is not writable for its unit: leave it at ${dataDir}, and mount another disk there if necessary.";
      }
      {
        assertion = lib.all (name: settings.${name} == sockets.${name}) (lib.attrNames sockets);
        message = "appliance.settings.assistant: socket and acting_socket are those of the units: leave them at ${sockets.socket} and ${sockets.acting_socket}.";
      }
      {
        assertion = settings.user == user;
        message = "appliance.settings.assistant.user = \"${toString settings.user}\" is not the user of the assistant's unit: leave it at ${user}.";
      }
      {
        assertion = url == null || lib.hasInfix "host=/" url;
        message = "appliance.settings.assistant.database_url = \"${toString url}\" needs a network, which the assistant's unit does not have: use the socket of a local PostgreSQL, such as postgresql:///assistant?host=/run/postgresql.";
      }
      {
        assertion = lib.all (url: addressOf url != null) searchUrls;
        message = "appliance.settings.search: url and fetcher_url need an IPv4 address, such as http://10.77.0.2:8888: the assistant's unit reaches no other address.";
      }
      {
        assertion = (search.fetcher_url or null) == null || cfg.searchKeyFile != null;
        message = "appliance.assistant.searchKeyFile is missing: the fetcher of settings.search.fetcher_url requires its key; name the secret with it.";
      }
      {
        assertion = !cfg.qdrant.enable || cfg.qdrant.keyFile != null;
        message = "appliance.assistant.qdrant.keyFile is missing: without a key, every process of this host reads all vectors; write QDRANT__SERVICE__API_KEY=... to a secret and name it.";
      }
      {
        assertion = (settings.qdrant_url or null) == (if cfg.qdrant.enable then qdrantUrl else null);
        message = "appliance.settings.assistant.qdrant_url = \"${toString (settings.qdrant_url or null)}\" is not the server of this host: leave it out and set appliance.assistant.qdrant.enable; the assistant's unit reaches no other server.";
      }
      {
        assertion =
          cfg.qdrant.enable
          -> qdrant.host == "127.0.0.1" && !qdrant.enable_cors && !(qdrant ? api_key);
        message = "services.qdrant.settings.service: host must be 127.0.0.1 and enable_cors false, and api_key would be readable in the store: use appliance.assistant.qdrant.keyFile.";
      }
    ];

    services.qdrant = lib.mkIf cfg.qdrant.enable {
      enable = true;
      settings = {
        telemetry_disabled = true;
        service = {
          host = "127.0.0.1";
          http_port = 6333;
          # NixOS allows requests from every website by default.
          enable_cors = false;
          # The dashboard is a program for browsers; no part of the appliance uses it.
          enable_static_content = false;
          static_content_dir = null;
        };
      };
    };

    appliance.settings.assistant = {
      data_dir = lib.mkDefault dataDir;
      socket = lib.mkDefault sockets.socket;
      acting_socket = lib.mkDefault sockets.acting_socket;
      user = lib.mkDefault user;
    }
    // lib.optionalAttrs cfg.qdrant.enable {
      qdrant_url = lib.mkDefault qdrantUrl;
      qdrant_key_file = lib.mkDefault qdrantKey;
    };

    appliance.settings.search = lib.mkIf (cfg.searchKeyFile != null) {
      key_file = lib.mkDefault "/run/credentials/appliance-assistant.service/fetcher-key";
    };

    users.groups.${user} = { };
    users.users.${user} = {
      isSystemUser = true;
      group = user;
      description = "Conversations, files and memory";
    };

    # The gateway makes its socket in this folder; the folder's group, which the socket inherits, is the assistant's.
    systemd.tmpfiles.rules = [
      "d /run/appliance-acting 2750 appliance-gateway ${user}"
      # The backup saves both folders, also before the first chat and the first file.
      "d ${dataDir} 0700 ${user} ${user}"
      "d ${dataDir}/backup 0700 ${user} ${user}"
      "d ${dataDir}/files 0700 ${user} ${user}"
      # For node_exporter, which cannot reach the socket. The file outlives the process: its age shows the end.
      "d ${metrics} 0755 ${user} ${user}"
      "d /run/appliance-metrics 0755 root root"
      "L+ /run/appliance-metrics/assistant.prom - - - - ${metrics}/assistant.prom"
    ];

    systemd.services = {
      # The group of the assistant's socket; the smoke test checks it with the doctor.
      appliance-gateway.serviceConfig.SupplementaryGroups = [ user ];
      appliance-smoke = lib.mkIf (appliance.smoke.enable && !appliance.trial.isRescue) {
        after = [ "appliance-assistant.service" ];
        wants = [ "appliance-assistant.service" ];
        serviceConfig.SupplementaryGroups = [ user ];
      };

      appliance-assistant = {
        description = "Conversations, files and memory";
        wantedBy = [ "multi-user.target" ];
        after = [
          "appliance-gateway.service"
        ]
        ++ lib.optional cfg.qdrant.enable "qdrant.service";
        restartTriggers = [ appliance.configFile ];
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig = own // {
          # Its smoke test waits until it listens, which is after the migrations of its database.
          Type = "notify";
          TimeoutStartSec = 600;
          ExecStart = "${command} assistant ${site} --metrics ${metrics}/assistant.prom";
          RuntimeDirectory = user;
          RuntimeDirectoryMode = "0750";
          Restart = "always";
          RestartSec = 1;
          # Running responses end before the process does; parsers of files end with it.
          KillMode = "mixed";
          TimeoutStopSec = 40;
          # One connection per stream of a client, and one to the gateway.
          LimitNOFILE = 65536;
        }
        // lib.optionalAttrs (cfg.qdrant.enable || search != null) {
          # The only networks are loopback, to Qdrant, and the tunnel, to the web search.
          PrivateNetwork = false;
          RestrictAddressFamilies = [
            "AF_UNIX"
            "AF_INET"
          ];
          IPAddressAllow = lib.optional cfg.qdrant.enable "localhost" ++ searchAddresses;
          LoadCredential = credentials (
            lib.optionalAttrs cfg.qdrant.enable { qdrant-key = cfg.qdrant.keyFile; }
            // lib.optionalAttrs (cfg.searchKeyFile != null) { fetcher-key = cfg.searchKeyFile; }
          );
        };
      };

      qdrant = lib.mkIf cfg.qdrant.enable {
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig = {
          # The key is in the environment of this process only: neither in the store nor in its arguments.
          EnvironmentFile = cfg.qdrant.keyFile;
          MemoryMax = cfg.qdrant.memoryMax;
          RestartSec = 5;
          IPAddressAllow = [ "localhost" ];
          IPAddressDeny = "any";
          UMask = "0077";
        };
      };

      # A consistent copy of a database in use, as its owner. Uploaded files never change once they have a name.
      appliance-assistant-copy = lib.mkIf appliance.backup.enable {
        description = "Copy of conversations and memory for the backup";
        before = [ "appliance-backup-stage.service" ];
        requiredBy = [ "appliance-backup-stage.service" ];
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig = own // {
          Type = "oneshot";
          ExecStart = "${command} backup chats ${site}";
          TimeoutStartSec = 3600;
        };
      };
    };

    appliance.backup.paths = [
      "${dataDir}/backup"
      "${dataDir}/files"
    ];
  };
}
