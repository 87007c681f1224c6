# The assistant: its unit, its sockets, its copy for the backup.
{ lib }:
let
  service = name: c: c.systemd.services.${name}.serviceConfig;
  on = {
    appliance.assistant.enable = true;
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
  "the assistant has a user, a folder and no network" = {
    host = "gpu";
    module = on;
    gives = c: {
      inherit (service "appliance-assistant" c)
        User
        StateDirectory
        PrivateNetwork
        RestrictAddressFamilies
        ;
    };
    is = {
      User = "appliance-assistant";
      StateDirectory = "appliance-assistant";
      PrivateNetwork = true;
      RestrictAddressFamilies = [ "AF_UNIX" ];
    };
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
  "another place of the acting socket is refused" = {
    host = "gpu";
    module.appliance = {
      assistant.enable = true;
      settings.assistant.acting_socket = "/run/acting.sock";
    };
    refuses = "socket and acting_socket are those of the units";
  };
}
