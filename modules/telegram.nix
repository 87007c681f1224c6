# The Telegram bot: a process of its own with a user of its own. It requests updates, so it needs no inbound port. It
# reaches the gateway by a socket of its own, and it has no access to keys or to the assistant.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; }) botAccess hardened secretPath;
  inherit (config) appliance;
  cfg = appliance.telegram;
  user = "appliance-telegram";
  dataDir = "/var/lib/${user}";
  acting = "/run/appliance-telegram-acting";
  metrics = "/run/${user}-metrics";
  settings = appliance.settings.telegram or { };
  own = {
    data_dir = dataDir;
    token_file = "/run/credentials/${user}.service/token";
    acting_socket = "${acting}/acting.sock";
    inherit user;
  };
  command = lib.getExe appliance.package;
in
{
  options.appliance.telegram = {
    enable = lib.mkEnableOption "the Telegram bot for the users of the gateway";
    tokenFile = lib.mkOption {
      type = lib.types.nullOr secretPath;
      default = null;
      example = "/run/secrets/telegram-bot-token";
      description = "File with the token of the bot, as @BotFather shows it; the unit gets it as a systemd credential. It must not be the bot of `appliance.notify`.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.tokenFile != null;
        message = "appliance.telegram.enable without a token: make a bot with @BotFather, write its token into a secret, and set appliance.telegram.tokenFile to a file such as /run/secrets/telegram-bot-token.";
      }
      {
        assertion = appliance.assistant.enable;
        message = "appliance.telegram.enable without appliance.assistant.enable: the assistant keeps the chats; enable it on this host.";
      }
      {
        assertion =
          !appliance.notify.enable || cfg.tokenFile == null || cfg.tokenFile != appliance.notify.tokenFile;
        message = "appliance.telegram.tokenFile is the bot of appliance.notify: users would write to the operator's bot; make a second bot with @BotFather.";
      }
      {
        assertion = lib.all (name: settings.${name} == own.${name}) (lib.attrNames own);
        message = "appliance.settings.telegram: data_dir, token_file, acting_socket and user are those of the unit: remove them.";
      }
    ];

    appliance.settings.telegram = lib.mapAttrs (_: lib.mkDefault) own;

    users.groups.${user} = { };
    users.users.${user} = {
      isSystemUser = true;
      group = user;
      description = "Telegram bot";
    };
    environment.systemPackages = [
      # Run as the bot's user: a file of root in its folder would stop the bot, and the socket admits only that user.
      (pkgs.writeShellScriptBin "appliance-telegram" ''
        exec ${lib.getExe' pkgs.util-linux "runuser"} -u ${user} -- ${command} telegram "$@"
      '')
    ];

    # The gateway makes its socket in this folder; the folder's group, which the socket inherits, is the bot's.
    systemd.tmpfiles.rules = [
      "d ${acting} 2750 appliance-gateway ${user}"
      "d ${dataDir} 0700 ${user} ${user}"
      # The backup saves this folder, also before the first start of the bot.
      "d ${dataDir}/backup 0700 ${user} ${user}"
      # For node_exporter. The file outlives the process: its age shows the end.
      "d ${metrics} 0755 ${user} ${user}"
      "d /run/appliance-metrics 0755 root root"
      "L+ /run/appliance-metrics/telegram.prom - - - - ${metrics}/telegram.prom"
    ];

    appliance.backup.paths = [ "${dataDir}/backup" ];

    # A consistent copy of a database in use, as its owner.
    systemd.services.appliance-telegram-copy = lib.mkIf appliance.backup.enable {
      description = "Copy of the bot's database for the backup";
      before = [ "appliance-backup-stage.service" ];
      requiredBy = [ "appliance-backup-stage.service" ];
      unitConfig.StartLimitIntervalSec = 0;
      serviceConfig = hardened // {
        Type = "oneshot";
        User = user;
        Group = user;
        StateDirectory = user;
        StateDirectoryMode = "0700";
        WorkingDirectory = dataDir;
        ExecStart = "${command} backup telegram --config /etc/appliance/appliance.json";
        PrivateNetwork = true;
        TimeoutStartSec = 600;
      };
    };

    systemd.services.appliance-telegram = {
      description = "Telegram bot";
      wantedBy = [ "multi-user.target" ];
      after = [
        "network.target"
        "appliance-gateway.service"
        "appliance-assistant.service"
      ];
      restartTriggers = [ appliance.configFile ];
      unitConfig.StartLimitIntervalSec = 0;
      # The bundle of NixOS, also if the interpreter was built with another default.
      environment.SSL_CERT_FILE = "/etc/ssl/certs/ca-certificates.crt";
      serviceConfig =
        hardened
        // botAccess
        // {
          # The bot also starts without a network, and then waits for it.
          Type = "exec";
          User = user;
          Group = user;
          StateDirectory = user;
          StateDirectoryMode = "0700";
          WorkingDirectory = dataDir;
          ExecStart = "${command} telegram serve --config /etc/appliance/appliance.json --metrics ${metrics}/telegram.prom";
          ReadWritePaths = [ metrics ];
          LoadCredential = [ "token:${toString cfg.tokenFile}" ];
          Restart = "always";
          RestartSec = 5;
          # Calls of the Bot API that have begun end before the process does.
          TimeoutStopSec = 40;
        };
    };
  };
}
