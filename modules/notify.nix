# Notices: agents put them into one outbox, and `appliance notify serve` sends them to a Telegram chat. Alertmanager
# posts its alerts to the webhook of the same process. Pages are sent at once, all other notices once a day.
{ config, lib, ... }:
let
  inherit (import ./lib.nix { inherit lib; }) botAccess botOptions hardened;
  inherit (config) appliance;
  cfg = appliance.notify;
  inherit (lib) mkOption types;
  user = "appliance-notify";
  outbox = "/var/lib/appliance-notices";
  run = "/run/appliance-notify";
  arguments = [
    "--outbox ${outbox}"
    "--token-file %d/token"
    "--chat=${cfg.chatId}"
    "--host ${appliance.host}"
    "--api ${cfg.api}"
    "--port ${toString cfg.webhookPort}"
    "--digest-hour ${toString cfg.digestHour}"
    "--metrics ${run}/notify.prom"
    "--status ${run}/status.json"
  ];
in
{
  options.appliance.notify = {
    enable = lib.mkEnableOption "messages to the operator by a Telegram bot";
    digestHour = mkOption {
      type = types.ints.between 0 23;
      default = 8;
      example = 19;
      description = "Local hour from which on the digest of the day is sent: all notices that do not page.";
    };
    webhookPort = mkOption {
      type = types.port;
      default = 9096;
      example = 9196;
      description = "Port on 127.0.0.1 where Alertmanager posts alerts, path `/alerts`.";
    };
    deadman.url = mkOption {
      type = types.nullOr (types.strMatching "https?://[A-Za-z0-9.:_/-]+");
      default = null;
      example = "http://10.77.0.2:9097";
      description = "Address of the dead man's switch on the VPS, in the tunnel. This machine reports to it that it is alive, and announces each planned absence. Without one, nothing reports that this machine is silent.";
    };
  }
  // botOptions {
    chat = "Id of the chat with the operator, or of a group (it begins with a dash). Write to the bot first: a bot cannot begin a chat.";
    token = "File with the token of the bot, as @BotFather shows it; the unit gets it as a systemd credential.";
    tokenFile = "/run/secrets/telegram-token";
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.tokenFile != null;
        message = "appliance.notify.enable without a token: make a bot with @BotFather, write its token into a secret, and set appliance.notify.tokenFile to a file such as /run/secrets/telegram-token.";
      }
      {
        assertion = cfg.chatId != null;
        message = "appliance.notify.enable without a chat: write to the bot, read the id of the chat from https://api.telegram.org/botTOKEN/getUpdates, and set appliance.notify.chatId.";
      }
      {
        assertion =
          !(appliance.gateway.enable && appliance.settings.gateway.port or 8000 == cfg.webhookPort);
        message = "appliance.notify.webhookPort = ${toString cfg.webhookPort} is the port of the gateway: set another one.";
      }
    ];

    users.users.${user} = {
      isSystemUser = true;
      group = user;
      description = "Sender of the notices";
    };
    users.groups.${user} = { };

    systemd.tmpfiles.rules = [
      # Each file in it belongs to the group of the sender.
      "d ${outbox} 2770 root ${user}"
      "d ${outbox}/sending 0770 ${user} ${user}"
      "d ${outbox}/refused 0770 ${user} ${user}"
      # For node_exporter. The link outlives the process, so that the age of its file shows an end of the service.
      "d /run/appliance-metrics 0755 root root"
      "L+ /run/appliance-metrics/notify.prom - - - - ${run}/notify.prom"
    ];

    # Defaults of `appliance notify test`, for root: only root may read the token.
    environment.etc."appliance/notify.json".text = builtins.toJSON {
      inherit outbox;
      inherit (appliance) host;
      inherit (cfg) api;
      chat = cfg.chatId;
      token_file = cfg.tokenFile;
    };
    environment.systemPackages = [ appliance.package ];

    systemd.services.appliance-notify = {
      description = "Sender of the notices";
      wantedBy = [ "multi-user.target" ];
      # It also runs without a network: then the notices wait.
      after = [ "network.target" ];
      # A failure that lasts for hours must not end the attempts to start it.
      startLimitIntervalSec = 0;
      # The bundle of NixOS, also if the interpreter was built with another default.
      environment.SSL_CERT_FILE = "/etc/ssl/certs/ca-certificates.crt";
      # It also serves HTTP to this host.
      serviceConfig = hardened // botAccess // {
        Type = "exec";
        User = user;
        Group = user;
        ExecStart = "${lib.getExe appliance.package} notify serve ${lib.concatStringsSep " " arguments}";
        LoadCredential = [ "token:${cfg.tokenFile}" ];
        # The doctor and node_exporter read its state, also after its end.
        RuntimeDirectory = "appliance-notify";
        RuntimeDirectoryMode = "0755";
        RuntimeDirectoryPreserve = true;
        # It moves and deletes the notices that the agents have put there.
        ReadWritePaths = [ outbox ];
        Restart = "always";
        RestartSec = 10;
        # A request to Telegram may end, so that its message is not repeated.
        TimeoutStopSec = 45;
      };
    };
  };
}
