# The assistant: conversations, files and memory behind the gateway. A process of its own with a user of its own: it
# parses files of clients, and it has no access to keys.
{ config, lib, ... }:
let
  inherit (import ./lib.nix { inherit lib; }) hardened;
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
  command = lib.getExe appliance.package;
  site = "--config /etc/appliance/appliance.json";
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
  };

  config = lib.mkIf cfg.enable {
    assertions = [
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
    ];

    appliance.settings.assistant = {
      data_dir = lib.mkDefault dataDir;
      socket = lib.mkDefault sockets.socket;
      acting_socket = lib.mkDefault sockets.acting_socket;
      user = lib.mkDefault user;
    };

    users.groups.${user} = { };
    users.users.${user} = {
      isSystemUser = true;
      group = user;
      description = "Conversations, files and memory";
    };

    # The gateway makes its socket in this folder; the folder's group, which the socket inherits, is the assistant's.
    systemd.tmpfiles.rules = [ "d /run/appliance-acting 2750 appliance-gateway ${user}" ];

    systemd.services = {
      # The group of the assistant's socket.
      appliance-gateway.serviceConfig.SupplementaryGroups = [ user ];

      appliance-assistant = {
        description = "Conversations, files and memory";
        wantedBy = [ "multi-user.target" ];
        after = [ "appliance-gateway.service" ];
        restartTriggers = [ appliance.configFile ];
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig = own // {
          Type = "exec";
          ExecStart = "${command} assistant ${site}";
          RuntimeDirectory = user;
          RuntimeDirectoryMode = "0750";
          Restart = "always";
          RestartSec = 1;
          # Running responses end before the process does; parsers of files end with it.
          KillMode = "mixed";
          TimeoutStopSec = 40;
          # One connection per stream of a client, and one to the gateway.
          LimitNOFILE = 65536;
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
