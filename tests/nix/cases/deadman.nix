# The dead man's switch on the VPS.
{ lib }:
let
  switch = more: {
    appliance.deadman = {
      enable = true;
      chatId = "4242";
      tokenFile = "/run/secrets/deadman-bot-token";
    }
    // more;
  };
  service = name: c: c.systemd.services.${name}.serviceConfig;
  rules =
    c:
    lib.filter (lib.hasInfix "dport 9097") (
      lib.splitString "\n" c.networking.nftables.tables.appliance.content
    );
in
{
  "a VPS has no switch by itself" = {
    host = "vps";
    gives = c: {
      unit = c.systemd.services ? appliance-deadman;
      rules = rules c;
    };
    is = {
      unit = false;
      rules = [ ];
    };
  };
  "the switch watches the GPU host through the tunnel" = {
    host = "vps";
    module = switch { };
    gives = c: {
      command = builtins.match ".* deadman serve (.*)" (service "appliance-deadman" c).ExecStart;
      inherit (service "appliance-deadman" c) AmbientCapabilities IPAddressAllow IPAddressDeny;
    };
    is = {
      command = [
        "--home gpu --address 10.77.0.1 --gateway-port 8000 --interface wg0 --peer 'ZXhhbXBsZS1ncHUtcHVibGljLWtleS0wMDAwMDAwMDA=' --listen 10.77.0.2 --port 9097 --folder /var/lib/appliance-deadman"
      ];
      AmbientCapabilities = "CAP_NET_ADMIN";
      IPAddressAllow = "10.77.0.1 10.77.0.2";
      IPAddressDeny = "any";
    };
  };
  "only the watched host reaches the switch" = {
    host = "vps";
    module = switch { };
    gives = c: map lib.trim (rules c);
    is = [ "iifname \"wg0\" ip saddr 10.77.0.1 tcp dport 9097 accept" ];
  };
  "the doctor expects the port in the tunnel only" = {
    host = "vps";
    module = switch { };
    gives =
      c: lib.filter (o: o.by == "deadman") c.appliance.doctor.machineFile.value.firewall.openings;
    is = [
      {
        protocol = "tcp";
        port = 9097;
        by = "deadman";
        interface = "wg0";
      }
    ];
  };
  "the token of the bot is a credential of the sender alone" = {
    host = "vps";
    module = switch { pingUrlFile = "/run/secrets/ping"; };
    gives = c: {
      sender = (service "appliance-deadman-notify" c).LoadCredential;
      switch = (service "appliance-deadman" c).LoadCredential;
      argument = lib.hasInfix " --token-file %d/bot-token" (service "appliance-deadman-notify" c).ExecStart;
    };
    is = {
      sender = [ "bot-token:/run/secrets/deadman-bot-token" ];
      switch = [ "ping-url:/run/secrets/ping" ];
      argument = true;
    };
  };
  "an outage of any length leaves the switch on" = {
    host = "vps";
    module = switch { };
    gives =
      c:
      map
        (name: [
          c.systemd.services.${name}.startLimitIntervalSec
          (service name c).Restart
        ])
        [
          "appliance-deadman"
          "appliance-deadman-notify"
        ];
    is = [
      [
        0
        "always"
      ]
      [
        0
        "always"
      ]
    ];
  };
  "a switch for a host that is not a peer" = {
    host = "vps";
    module = switch { home = "attic"; };
    refuses = "appliance.deadman.home = \"attic\" is not a peer of the tunnel with a publicKey: name one of appliance.network.wireguard.peers (gpu)";
  };
  "a switch without a tunnel" = {
    host = "vps";
    module = lib.recursiveUpdate (switch { }) {
      appliance.network.wireguard.enable = lib.mkForce false;
    };
    refuses = "appliance.deadman.home = \"gpu\" is not a peer of the tunnel";
  };
  "a switch without a bot" = {
    host = "vps";
    module = switch { tokenFile = null; };
    refuses = "appliance.deadman.enable without a bot: create one with @BotFather";
  };
  "a switch on the watched host" = {
    host = "gpu";
    module = switch { home = "vps"; };
    refuses = "appliance.deadman.enable on a host with the gateway";
  };
  "the switch: a token in the store" = {
    host = "vps";
    module = switch { tokenFile = "/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-token"; };
    forces = c: c.appliance.deadman.tokenFile;
    errors = "absolute path outside the Nix store";
  };
  "a chat by the name of a person" = {
    host = "vps";
    module = switch { chatId = "Ada Lovelace"; };
    forces = c: c.appliance.deadman.chatId;
    errors = "is not of type";
  };
}
