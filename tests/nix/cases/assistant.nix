# The assistant: its unit, its sockets, its copy for the backup.
{ lib }:
let
  service = name: c: c.systemd.services.${name}.serviceConfig;
  on = {
    appliance.assistant.enable = true;
  };
  qdrant.appliance.assistant.qdrant = {
    enable = true;
    keyFile = "/run/secrets/qdrant-key";
  };
  second.appliance.settings.hosts.gpu2 = {
    memory_gib = 128;
    gpus = [
      {
        index = 0;
        model = "RTX PRO 6000 Blackwell Workstation";
        memory_mib = 97887;
      }
    ];
  };
  backup = {
    enable = true;
    repositories.vps = {
      url = "rest:http://10.77.0.2:8100/gpu/";
      passwordFile = "/run/secrets/backup-password";
    };
  };
in
{
  "the role of a GPU server has an assistant" = {
    host = "gpu";
    gives = c: c.appliance.assistant.enable;
    is = true;
  };
  "the assistant has a user, a folder, no network, and reports its start" = {
    host = "gpu";
    module = on;
    gives = c: {
      inherit (service "appliance-assistant" c)
        Type
        User
        StateDirectory
        PrivateNetwork
        RestrictAddressFamilies
        ;
      smoke = lib.elem "appliance-assistant.service" c.systemd.services.appliance-smoke.after;
    };
    is = {
      Type = "notify";
      smoke = true;
      User = "appliance-assistant";
      StateDirectory = "appliance-assistant";
      PrivateNetwork = true;
      RestrictAddressFamilies = [ "AF_UNIX" ];
    };
  };
  "the assistant of a site with two GPU hosts is not a default" = {
    host = "gpu";
    module = second;
    refuses = "appliance.assistant.enable is not set, and the site has several GPU hosts (gpu, gpu2)";
  };
  "the assistant of a site with two GPU hosts is on the chosen one" = {
    host = "gpu";
    module = {
      imports = [
        on
        second
      ];
    };
    gives = c: lib.all (one: one.assertion) c.assertions;
    is = true;
  };
  "gateway and assistant reach each other by groups" = {
    host = "gpu";
    module = on;
    gives = c: {
      site = c.appliance.settings.assistant;
      gateway = (service "appliance-gateway" c).SupplementaryGroups;
      folder = lib.filter (lib.hasInfix "appliance-acting") c.systemd.tmpfiles.rules;
    };
    is = {
      site = {
        acting_socket = "/run/appliance-acting/acting.sock";
        data_dir = "/var/lib/appliance-assistant";
        socket = "/run/appliance-assistant/assistant.sock";
        user = "appliance-assistant";
      };
      gateway = [ "appliance-assistant" ];
      folder = [ "d /run/appliance-acting 2750 appliance-gateway appliance-assistant" ];
    };
  };
  "a host without the assistant has no section for it" = {
    host = "gpu";
    module.appliance.assistant.enable = lib.mkForce false;
    gives = c: c.appliance.settings ? assistant;
    is = false;
  };
  "a backup has a copy of the chats, and their files" = {
    host = "gpu";
    module.appliance = {
      assistant.enable = true;
      inherit backup;
    };
    gives = c: {
      inherit (c.appliance.backup) paths;
      inherit (service "appliance-assistant-copy" c) User;
      inherit (c.systemd.services.appliance-assistant-copy) requiredBy before;
    };
    is = {
      paths = [
        "/var/lib/appliance-assistant/backup"
        "/var/lib/appliance-assistant/files"
      ];
      User = "appliance-assistant";
      requiredBy = [ "appliance-backup-stage.service" ];
      before = [ "appliance-backup-stage.service" ];
    };
  };
  "without a backup, no copy is made" = {
    host = "gpu";
    module = on;
    gives = c: c.systemd.services ? appliance-assistant-copy;
    is = false;
  };
  "an assistant needs the gateway of its host" = {
    host = "gpu";
    module.appliance = {
      assistant.enable = true;
      gateway.enable = lib.mkForce false;
      smoke.enable = lib.mkForce false;
    };
    refuses = "appliance.assistant.enable without appliance.gateway.enable";
  };
  "the data of an assistant is in the folder of its unit" = {
    host = "gpu";
    module.appliance = {
      assistant.enable = true;
      settings.assistant.data_dir = "/srv/chats";
    };
    refuses = ''appliance.settings.assistant.data_dir = "/srv/chats" is not writable'';
  };
  "a PostgreSQL of the network is refused" = {
    host = "gpu";
    module.appliance = {
      assistant.enable = true;
      settings.assistant.database_url = "postgresql://assistant@10.77.0.2/assistant";
    };
    refuses = "needs a network, which the assistant's unit does not have";
  };
  "a PostgreSQL of this host is accepted by its socket" = {
    host = "gpu";
    module.appliance = {
      assistant.enable = true;
      settings.assistant.database_url = "postgresql:///assistant?host=/run/postgresql";
    };
    gives = c: c.appliance.settings.assistant.database_url;
    is = "postgresql:///assistant?host=/run/postgresql";
  };
  "another user of the acting socket is refused" = {
    host = "gpu";
    module.appliance = {
      assistant.enable = true;
      settings.assistant.user = "root";
    };
    refuses = ''appliance.settings.assistant.user = "root" is not the user'';
  };
  "another place of the assistant's socket is refused" = {
    host = "gpu";
    module.appliance = {
      assistant.enable = true;
      settings.assistant.socket = "/run/chats.sock";
    };
    refuses = "socket and acting_socket are those of the units";
  };
  "Qdrant has a key, no CORS, a limit of memory, and loopback only" = {
    host = "gpu";
    module = qdrant;
    gives = c: {
      inherit (c.services.qdrant.settings) telemetry_disabled;
      inherit (c.services.qdrant.settings.service) host enable_cors enable_static_content;
      unit = {
        inherit (service "qdrant" c)
          EnvironmentFile
          MemoryMax
          IPAddressDeny
          IPAddressAllow
          ;
      };
      assistant = {
        inherit (service "appliance-assistant" c)
          PrivateNetwork
          RestrictAddressFamilies
          IPAddressDeny
          IPAddressAllow
          LoadCredential
          ;
      };
      site = {
        inherit (c.appliance.settings.assistant) qdrant_url qdrant_key_file;
      };
    };
    is = {
      telemetry_disabled = true;
      host = "127.0.0.1";
      enable_cors = false;
      enable_static_content = false;
      unit = {
        EnvironmentFile = "/run/secrets/qdrant-key";
        MemoryMax = "8G";
        IPAddressDeny = "any";
        IPAddressAllow = [ "localhost" ];
      };
      assistant = {
        PrivateNetwork = false;
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
        ];
        IPAddressDeny = "any";
        IPAddressAllow = [ "localhost" ];
        LoadCredential = [ "qdrant-key:/run/secrets/qdrant-key" ];
      };
      site = {
        qdrant_url = "http://127.0.0.1:6333";
        qdrant_key_file = "/run/credentials/appliance-assistant.service/qdrant-key";
      };
    };
  };
  "the copy for the backup has no network with Qdrant either" = {
    host = "gpu";
    module.appliance = {
      inherit backup;
      inherit (qdrant.appliance) assistant;
    };
    gives = c: (service "appliance-assistant-copy" c).PrivateNetwork;
    is = true;
  };
  "a Qdrant without a key is refused" = {
    host = "gpu";
    module.appliance.assistant.qdrant.enable = true;
    refuses = "appliance.assistant.qdrant.keyFile is missing";
  };
  "a Qdrant that websites may query is refused" = {
    host = "gpu";
    module = {
      inherit (qdrant) appliance;
      services.qdrant.settings.service.enable_cors = lib.mkForce true;
    };
    refuses = "host must be 127.0.0.1 and enable_cors false";
  };
  "a key of Qdrant in the store is refused" = {
    host = "gpu";
    module = {
      inherit (qdrant) appliance;
      services.qdrant.settings.service.api_key = "secret";
    };
    refuses = "api_key would be readable in the store";
  };
  "a Qdrant of the network is refused" = {
    host = "gpu";
    module.appliance.settings.assistant = {
      qdrant_url = "http://10.77.0.2:6333";
      qdrant_key_file = "/run/secrets/qdrant-key";
    };
    refuses = ''appliance.settings.assistant.qdrant_url = "http://10.77.0.2:6333" is not the server'';
  };
  "another place of the acting socket is refused" = {
    host = "gpu";
    module.appliance = {
      assistant.enable = true;
      settings.assistant.acting_socket = "/run/acting.sock";
    };
    refuses = "socket and acting_socket are those of the units";
  };
}
