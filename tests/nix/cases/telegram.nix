# The Telegram bot: its unit, its socket, its token.
{ lib }:
let
  on.appliance.telegram = {
    enable = true;
    tokenFile = "/run/secrets/telegram-bot-token";
  };
  service = c: c.systemd.services.appliance-telegram.serviceConfig;
in
{
  "the role of a GPU server has no bot by default" = {
    host = "gpu";
    gives = c: {
      unit = c.systemd.services ? appliance-telegram;
      site = c.appliance.settings ? telegram;
    };
    is = {
      unit = false;
      site = false;
    };
  };
  "the bot has a user, a network without a port, and its token as a credential" = {
    host = "gpu";
    module = on;
    gives = c: {
      inherit (service c)
        User
        StateDirectory
        LoadCredential
        IPAddressDeny
        ;
      groups = (service c).SupplementaryGroups or [ ];
      ports = lib.filter (port: port == 443) c.networking.firewall.allowedTCPPorts;
      secret = lib.hasInfix "/run/secrets" (service c).ExecStart;
    };
    is = {
      User = "appliance-telegram";
      StateDirectory = "appliance-telegram";
      LoadCredential = [ "token:/run/secrets/telegram-bot-token" ];
      IPAddressDeny = "";
      groups = [ ];
      ports = [ ];
      secret = false;
    };
  };
  "gateway and bot share a socket that the assistant's group cannot reach" = {
    host = "gpu";
    module = on;
    gives = c: {
      site = c.appliance.settings.telegram;
      folder = lib.filter (lib.hasInfix "telegram-acting") c.systemd.tmpfiles.rules;
    };
    is = {
      site = {
        acting_socket = "/run/appliance-telegram-acting/acting.sock";
        data_dir = "/var/lib/appliance-telegram";
        token_file = "/run/credentials/appliance-telegram.service/token";
        user = "appliance-telegram";
      };
      folder = [ "d /run/appliance-telegram-acting 2750 appliance-gateway appliance-telegram" ];
    };
  };
  "a backup has a copy of the bot's database" = {
    host = "gpu";
    module = {
      imports = [ on ];
      appliance.backup = {
        enable = true;
        repositories.vps = {
          url = "rest:http://10.77.0.2:8100/gpu/";
          passwordFile = "/run/secrets/backup-password";
        };
      };
    };
    gives = c: {
      saved = lib.elem "/var/lib/appliance-telegram/backup" c.appliance.backup.paths;
      inherit (c.systemd.services.appliance-telegram-copy) before requiredBy;
      inherit (c.systemd.services.appliance-telegram-copy.serviceConfig) User;
    };
    is = {
      saved = true;
      before = [ "appliance-backup-stage.service" ];
      requiredBy = [ "appliance-backup-stage.service" ];
      User = "appliance-telegram";
    };
  };
  "without a backup, the bot's database is not copied" = {
    host = "gpu";
    module = on;
    gives = c: c.systemd.services ? appliance-telegram-copy;
    is = false;
  };
  "a bot without a token is refused" = {
    host = "gpu";
    module.appliance.telegram.enable = true;
    refuses = "appliance.telegram.enable without a token";
  };
  "a bot needs the assistant of its host" = {
    host = "gpu";
    module = {
      imports = [ on ];
      appliance.assistant.enable = lib.mkForce false;
    };
    refuses = "appliance.telegram.enable without appliance.assistant.enable";
  };
  "the bot of the operator's notices is refused" = {
    host = "gpu";
    module = {
      imports = [ on ];
      appliance.notify = {
        enable = true;
        chatId = "1";
        tokenFile = "/run/secrets/telegram-bot-token";
      };
    };
    refuses = "is the bot of appliance.notify";
  };
  "another place of the bot's socket is refused" = {
    host = "gpu";
    module = {
      imports = [ on ];
      appliance.settings.telegram.acting_socket = "/run/acting.sock";
    };
    refuses = "are those of the unit: remove them";
  };
}
