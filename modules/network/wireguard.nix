# The tunnel between the VPS and the GPU host. Private keys are made on each host and never leave it; public
# keys and addresses stand inline, so a peer needs neither DNS nor a file at boot.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ../lib.nix { inherit lib; }) hardened secretPath;
  cfg = config.appliance.network.wireguard;
  inherit (lib) mkOption types;
  ipv4 = "([0-9]{1,3}\\.){3}[0-9]{1,3}";
  peers = lib.attrValues cfg.peers;
  bad = test: lib.attrNames (lib.filterAttrs (_: test) cfg.peers);
  named =
    found: lib.concatMapStringsSep ", " (name: "appliance.network.wireguard.peers.${name}") found;
  addresses = [ cfg.address ] ++ map (p: p.address) peers;
  twice = lib.unique (lib.filter (a: lib.count (b: b == a) addresses > 1) addresses);
  keys = map (p: p.publicKey) (lib.filter (p: p.publicKey != null) peers);
  isEndpoint = e: builtins.match "(${ipv4}|\\[[0-9a-fA-F:]+]):[0-9]{1,5}" e != null;
in
{
  options.appliance.network.wireguard = {
    enable = lib.mkEnableOption "the WireGuard tunnel wg0";
    address = mkOption {
      type = types.strMatching ipv4;
      example = "10.77.0.1";
      description = "This host's address inside the tunnel.";
    };
    network = mkOption {
      type = types.strMatching "${ipv4}/[0-9]{1,2}";
      default = "10.77.0.0/24";
      example = "10.77.0.0/24";
      description = "The tunnel's network.";
    };
    listenPort = mkOption {
      type = types.nullOr types.port;
      default = null;
      example = 51820;
      description = "UDP port to listen on. The VPS needs one; the GPU host behind a home router dials out and needs none.";
    };
    privateKeyFile = mkOption {
      type = secretPath;
      default = "/var/lib/wireguard/wg0.key";
      example = "/var/lib/wireguard/wg0.key";
      description = "Where this host keeps its private key; made there when absent. Its public half: `wg show wg0 public-key`.";
    };
    mtu = mkOption {
      type = types.ints.between 1280 1500;
      # The least that IPv6 allows: 1340 bytes on an IPv4 line, which DS-Lite, PPPoE and mobile lines all carry. A
      # larger one stalls streams where ICMP is filtered, and small tokens gain nothing from it.
      default = 1280;
      example = 1420;
      description = "MTU of the tunnel. The default passes every common line; 1420 suits one that carries 1500 bytes for sure.";
    };
    keepaliveSec = mkOption {
      type = types.ints.between 1 60;
      default = 5;
      example = 25;
      description = "Seconds between signs of life to the peers this host dials: how long they may take to notice that its address changed, or that they were restarted.";
    };
    peers = mkOption {
      default = { };
      example = {
        vps = {
          publicKey = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
          address = "10.77.0.2";
          endpoint = "203.0.113.5:51820";
        };
      };
      description = "The other ends: one per VPS on the GPU host, the GPU host on each VPS.";
      type = types.attrsOf (
        types.submodule {
          options = {
            publicKey = mkOption {
              type = types.nullOr (types.strMatching "[A-Za-z0-9+/]{43}=");
              default = null;
              example = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
              description = "Its public key.";
            };
            address = mkOption {
              type = types.strMatching ipv4;
              example = "10.77.0.2";
              description = "Its address inside the tunnel; no other is accepted from it.";
            };
            endpoint = mkOption {
              type = types.nullOr types.str;
              default = null;
              example = "203.0.113.5:51820";
              description = "Where to reach it, address and port; none for a host that dials in.";
            };
            presharedKeyFile = mkOption {
              type = types.nullOr secretPath;
              default = null;
              example = "/run/secrets/wg-psk";
              description = "File of a preshared key, against recorded traffic and a later quantum computer.";
            };
          };
        }
      );
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = peers != [ ];
        message = "appliance.network.wireguard.peers is empty: name the other end, with its publicKey and address.";
      }
      {
        assertion = bad (p: p.publicKey == null) == [ ];
        message = "${
          named (bad (p: p.publicKey == null))
        }.publicKey is missing: print it on that host with `wg show wg0 public-key` and put it here.";
      }
      {
        assertion = lib.length (lib.unique keys) == lib.length keys;
        message = "appliance.network.wireguard.peers: two peers have one publicKey, so one of them would never be reached: make a key on each host.";
      }
      {
        assertion = twice == [ ];
        message = "appliance.network.wireguard: address ${lib.concatStringsSep ", " twice} is used twice, by this host or its peers: give each an address of its own in ${cfg.network}.";
      }
      {
        assertion = bad (p: p.endpoint != null && !(isEndpoint p.endpoint)) == [ ];
        message = "${
          named (bad (p: p.endpoint != null && !(isEndpoint p.endpoint)))
        }.endpoint is no ADDRESS:PORT: write the IP address, since a name that DNS cannot tell at boot leaves the tunnel dead.";
      }
      {
        assertion = cfg.listenPort != null || lib.any (p: p.endpoint != null) peers;
        message = "appliance.network.wireguard has neither a listenPort nor a peer with an endpoint, so nobody can begin: set listenPort on the VPS, peers.vps.endpoint on the GPU host.";
      }
    ];
    warnings = map (
      name:
      "appliance.network.wireguard.peers.${name}.publicKey is this repository's example: put the real one there before installing."
    ) (bad (p: p.publicKey != null && lib.hasPrefix "ZXhhbXBsZS" p.publicKey));

    boot.kernel.sysctl = {
      # Where even small packets vanish without an ICMP, TCP finds out by itself.
      "net.ipv4.tcp_mtu_probing" = lib.mkDefault 1;
      # But a line that is silent for a while is not taken for a narrow one for ever.
      "net.ipv4.tcp_mtu_probe_floor" = lib.mkDefault 512;
      # After a cut, streams go on within 5 s, and not after as long as the cut was. (Linux 6.15 and newer.)
      "net.ipv4.tcp_rto_max_ms" = lib.mkDefault 5000;
      # An answer that was finished meanwhile is still delivered: the kernel's default gives up what its program
      # has closed as soon as the pause between two attempts is at its longest.
      "net.ipv4.tcp_orphan_retries" = lib.mkDefault 15;
    };

    # A peer that was restarted knows neither this host's keys of the hour nor its address, and a keepalive
    # needs no answer: only unanswered traffic makes WireGuard shake hands again.
    systemd.services = lib.mapAttrs' (
      name: peer:
      lib.nameValuePair "appliance-tunnel-watch-${name}" {
        description = "Signs of life to ${name} through the tunnel";
        wantedBy = [ "multi-user.target" ];
        after = [ "wireguard-wg0.service" ];
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig = hardened // {
          Type = "exec";
          DynamicUser = true;
          ExecStart = "${lib.getExe' pkgs.iputils "ping"} -q -n -I wg0 -i ${toString cfg.keepaliveSec} ${peer.address}";
          Restart = "always";
          RestartSec = cfg.keepaliveSec;
          # It sends echo requests into the tunnel: an unprivileged ICMP socket, to that peer only.
          RestrictAddressFamilies = [ "AF_INET" ];
          IPAddressAllow = peer.address;
        };
      }
    ) (lib.filterAttrs (_: peer: peer.endpoint != null) cfg.peers);

    networking.wireguard.interfaces.wg0 = {
      ips = [ "${cfg.address}/${lib.last (lib.splitString "/" cfg.network)}" ];
      inherit (cfg) listenPort mtu privateKeyFile;
      generatePrivateKeyFile = lib.mkDefault true;
      peers = lib.mapAttrsToList (name: peer: {
        inherit name;
        inherit (peer) endpoint presharedKeyFile;
        publicKey = peer.publicKey or "";
        allowedIPs = [ "${peer.address}/32" ];
        # Home routers forget a quiet UDP flow within half a minute, and a peer learns a new address from it.
        persistentKeepalive = if peer.endpoint == null then null else cfg.keepaliveSec;
      }) (lib.filterAttrs (_: p: p.publicKey != null) cfg.peers);
    };
  };
}
