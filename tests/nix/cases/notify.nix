# The sender of notices, and the alerts of trials that it sends.
{ lib }:
let
  enabled.appliance.notify = {
    enable = true;
    tokenFile = "/run/secrets/telegram-token";
    chatId = "-1001234567890";
  };
  service = name: c: c.systemd.services.${name}.serviceConfig;
in
{
  "notices are sent by a user of their own, with the token as a credential" = {
    host = "gpu";
    module = enabled;
    gives = c: {
      inherit (service "appliance-notify" c)
        User
        LoadCredential
        IPAddressDeny
        ReadWritePaths
        ;
      limit = c.systemd.services.appliance-notify.startLimitIntervalSec;
      account = c.users.users.appliance-notify.isSystemUser;
      argv =
        lib.hasInfix "notify serve --outbox /var/lib/appliance-notices --token-file %d/token --chat=-1001234567890 --host gpu --api https://api.telegram.org --port 9096 --digest-hour 8"
          (service "appliance-notify" c).ExecStart;
      secret = lib.hasInfix "/run/secrets" (service "appliance-notify" c).ExecStart;
    };
    is = {
      User = "appliance-notify";
      LoadCredential = [ "token:/run/secrets/telegram-token" ];
      IPAddressDeny = "";
      ReadWritePaths = [ "/var/lib/appliance-notices" ];
      limit = 0;
      account = true;
      argv = true;
      secret = false;
    };
  };
  "the outbox belongs to root, and its files to the group of the sender" = {
    host = "vps";
    module = enabled;
    gives = c: lib.elem "d /var/lib/appliance-notices 2770 root appliance-notify" c.systemd.tmpfiles.rules;
    is = true;
  };
  "a host without notices has no sender" = {
    host = "gpu";
    gives = c: {
      unit = c.systemd.services ? appliance-notify;
      user = c.users.users ? appliance-notify;
      trial = c.systemd.services ? appliance-trial-alerts;
    };
    is = {
      unit = false;
      user = false;
      trial = false;
    };
  };
  "the alerts of a trial are put into the outbox" = {
    host = "gpu";
    module = enabled;
    gives = c: {
      exec = lib.hasSuffix "trial alerts --outbox /var/lib/appliance-notices" (service "appliance-trial-alerts" c).ExecStart;
      inherit (service "appliance-trial-alerts" c) ReadWritePaths IPAddressDeny;
      path = c.systemd.paths.appliance-trial-alerts.pathConfig.PathExists;
    };
    is = {
      exec = true;
      ReadWritePaths = [ "-/var/lib/appliance-notices" ];
      IPAddressDeny = "any";
      path = "/var/lib/appliance/trial/unsent";
    };
  };
  "a site's own alert program gets the alerts of a trial also if notices are enabled" = {
    host = "gpu";
    module = {
      imports = [ enabled ];
      appliance.trial.alertHook = "/run/current-system/sw/bin/alert";
    };
    gives =
      c:
      lib.hasSuffix "trial alerts --hook /run/current-system/sw/bin/alert"
        (service "appliance-trial-alerts" c).ExecStart;
    is = true;
  };
  "the doctor's description names the state of the sender" = {
    host = "gpu";
    module = enabled;
    gives = c: c.appliance.doctor.machineFile.value.notices.status;
    is = "/run/appliance-notify/status.json";
  };

  "notices without a token" = {
    host = "gpu";
    module = {
      imports = [ enabled ];
      appliance.notify.tokenFile = lib.mkForce null;
    };
    refuses = "appliance.notify.enable without a token";
  };
  "notices without a chat" = {
    host = "vps";
    module = {
      imports = [ enabled ];
      appliance.notify.chatId = lib.mkForce null;
    };
    refuses = "appliance.notify.enable without a chat";
  };
  "a token in the store" = {
    host = "gpu";
    module = {
      imports = [ enabled ];
      appliance.notify.tokenFile = lib.mkForce "/nix/store/token";
    };
    forces = c: (service "appliance-notify" c).LoadCredential;
    errors = "absolute path outside the Nix store";
  };
  "a chat id with a space" = {
    host = "gpu";
    module = {
      imports = [ enabled ];
      appliance.notify.chatId = lib.mkForce "12 34";
    };
    forces = c: (service "appliance-notify" c).ExecStart;
    errors = "is not of type";
  };
  "a digest at hour 24" = {
    host = "gpu";
    module = {
      imports = [ enabled ];
      appliance.notify.digestHour = 24;
    };
    forces = c: (service "appliance-notify" c).ExecStart;
    errors = "is not of type";
  };
  "the webhook on the gateway's port" = {
    host = "gpu";
    module = {
      imports = [ enabled ];
      appliance.notify.webhookPort = 8000;
    };
    refuses = "appliance.notify.webhookPort = 8000 is the port of the gateway";
  };
}
