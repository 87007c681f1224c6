# The dead man's switch on the VPS watches the GPU host at home through the tunnel. It sends alarms by a bot of its own.
# appliance/watch/deadman decides. The sender is a second unit: it alone reaches the Internet and holds the token. The
# switch reaches only the host at home. Each of them restarts without the other.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; })
    botAccess
    botOptions
    hardened
    secretPath
    ;
  inherit (config) appliance;
  cfg = appliance.deadman;
  wg = appliance.network.wireguard;
  inherit (lib) mkOption types;
  folder = "/var/lib/appliance-deadman";
  known = wg.enable && wg.peers ? ${cfg.home};
  peer =
    wg.peers.${cfg.home} or {
      address = "127.0.0.1";
      publicKey = null;
    };
  pings = cfg.pingUrlFile != null;
  words = lib.escapeShellArgs;

  common = {
    wantedBy = [ "multi-user.target" ];
    # An outage of any length must not leave it off.
    startLimitIntervalSec = 0;
    serviceConfig = hardened // {
      Type = "exec";
      User = "appliance-deadman";
      Group = "appliance-deadman";
      # The alarm's state and the outbox, which both units use.
      StateDirectory = "appliance-deadman";
      StateDirectoryMode = "0700";
      Restart = "always";
      RestartSec = 5;
    };
  };
in
{
  options.appliance.deadman = {
    enable = lib.mkEnableOption "the dead man's switch for the GPU host at home, on the VPS";
    home = mkOption {
      type = types.str;
      default = "gpu";
      example = "gpu";
      description = "Name of the watched host in `appliance.network.wireguard.peers`.";
    };
    gatewayPort = mkOption {
      type = types.port;
      default = appliance.settings.gateway.port;
      defaultText = lib.literalExpression "config.appliance.settings.gateway.port";
      example = 8000;
      description = "Port of its gateway inside the tunnel.";
    };
    port = mkOption {
      type = types.port;
      default = 9097;
      example = 9097;
      description = "Port on this host's tunnel address for beats, announcements and metrics. Only the watched host reaches it; there it is part of `appliance.notify.deadman.url`.";
    };
    beat = mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = "Whether the host's Alertmanager sends beats. If false, the end of its monitoring remains unnoticed.";
    };
    pingUrlFile = mkOption {
      type = types.nullOr secretPath;
      default = null;
      example = "/run/secrets/deadman-ping-url";
      description = "File with a URL that gets a request each minute while all is well, such as one of healthchecks.io. That service notices if the VPS itself ends.";
    };
  }
  // botOptions {
    chat = "Telegram chat that gets the alarms.";
    token = "File with the token of a bot of its own: the VPS must not have the token of the host at home.";
    tokenFile = "/run/secrets/deadman-bot-token";
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = known && peer.publicKey != null;
        message = "appliance.deadman.home = \"${cfg.home}\" is not a peer of the tunnel with a publicKey: name one of appliance.network.wireguard.peers (${lib.concatStringsSep ", " (lib.attrNames wg.peers)}), and enable the tunnel.";
      }
      {
        assertion = cfg.tokenFile != null && cfg.chatId != null;
        message = "appliance.deadman.enable without a bot: create one with @BotFather, and set appliance.deadman.tokenFile and appliance.deadman.chatId. Use another bot than that of the GPU host.";
      }
      {
        assertion = !appliance.gateway.enable;
        message = "appliance.deadman.enable on a host with the gateway: the switch ends with the host that it watches; enable it on the VPS.";
      }
    ];

    users.users.appliance-deadman = {
      isSystemUser = true;
      group = "appliance-deadman";
    };
    users.groups.appliance-deadman = { };

    systemd.services.appliance-deadman = lib.recursiveUpdate common {
      description = "Dead man's switch for ${cfg.home}";
      # The tunnel may fail or come up later: the switch reports that, and binds its address in advance.
      after = [ "wireguard-wg0.service" ];
      path = [ pkgs.wireguard-tools ];
      serviceConfig = {
        ExecStart =
          "${lib.getExe appliance.package} deadman serve "
          + words (
            [
              "--home"
              cfg.home
              "--address"
              peer.address
              "--gateway-port"
              (toString cfg.gatewayPort)
              "--interface"
              "wg0"
              "--peer"
              (if peer.publicKey == null then "" else peer.publicKey)
              "--listen"
              wg.address
              "--port"
              (toString cfg.port)
              "--folder"
              folder
            ]
            ++ lib.optional (!cfg.beat) "--no-beat"
          )
          + lib.optionalString pings " --ping-url-file %d/ping-url";
        # `wg show` reads the last handshake from the kernel over netlink, which requires this capability in the first
        # user namespace.
        AmbientCapabilities = "CAP_NET_ADMIN";
        CapabilityBoundingSet = "CAP_NET_ADMIN";
        PrivateUsers = false;
        # HTTP to and from the watched host. The other address is its own, for `curl` on this host.
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_NETLINK"
        ]
        ++ lib.optional pings "AF_INET6";
        IPAddressAllow = if pings then "any" else "${peer.address} ${wg.address}";
        LoadCredential = lib.optional pings "ping-url:${cfg.pingUrlFile}";
      };
    };

    systemd.services.appliance-deadman-notify = lib.recursiveUpdate common {
      description = "Sender of the alarms of the dead man's switch";
      after = [ "network-online.target" ];
      wants = [ "network-online.target" ];
      serviceConfig = botAccess // {
        ExecStart =
          "${lib.getExe appliance.package} notify serve "
          + words [
            "--outbox"
            "${folder}/notices"
            "--chat"
            (toString cfg.chatId)
            "--host"
            appliance.host
            "--api"
            cfg.api
          ]
          + " --token-file %d/bot-token";
        LoadCredential = [ "bot-token:${toString cfg.tokenFile}" ];
      };
    };
  };
}
