# The tunnel between the VPS and the GPU host. Each host makes its private key, which never leaves the host. Public keys
# and addresses are in the configuration, so a peer needs neither DNS nor a file at boot.
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
      description = "Address of this host inside the tunnel.";
    };
    network = mkOption {
      type = types.strMatching "${ipv4}/[0-9]{1,2}";
      default = "10.77.0.0/24";
      example = "10.77.0.0/24";
      description = "Network of the tunnel.";
    };
    listenPort = mkOption {
      type = types.nullOr types.port;
      default = null;
      example = 51820;
      description = "UDP port to listen on. The VPS needs one; a GPU host behind a home router connects by itself and needs none.";
    };
    privateKeyFile = mkOption {
      type = secretPath;
      default = "/var/lib/wireguard/wg0.key";
      example = "/var/lib/wireguard/wg0.key";
      description = "File of the private key of this host, which makes it if it is absent. `wg show wg0 public-key` prints the public key.";
    };
    mtu = mkOption {
      type = types.ints.between 1280 1500;
      # The minimum of IPv6: 1340 bytes on an IPv4 line, which DS-Lite, PPPoE and mobile lines all carry. A larger MTU
      # stalls streams on lines that filter ICMP, and small tokens gain nothing from it.
      default = 1280;
      example = 1420;
      description = "MTU of the tunnel. The default fits every common line; 1420 suits a line that certainly carries 1500 bytes.";
    };
    keepaliveSec = mkOption {
      type = types.ints.between 1 60;
      default = 5;
      example = 25;
      description = "Seconds between keepalives to the peers that this host connects to. After a change of address or a restart of a peer, the tunnel works again after this time.";
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
      description = "Peers of this host: each VPS on the GPU host, the GPU host on each VPS.";
      type = types.attrsOf (
        types.submodule {
          options = {
            publicKey = mkOption {
              type = types.nullOr (types.strMatching "[A-Za-z0-9+/]{43}=");
              default = null;
              example = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
              description = "Public key of the peer.";
            };
            address = mkOption {
              type = types.strMatching ipv4;
              example = "10.77.0.2";
              description = "Address of the peer inside the tunnel; packets from it with another address are dropped.";
            };
            endpoint = mkOption {
              type = types.nullOr types.str;
              default = null;
              example = "203.0.113.5:51820";
              description = "Public address and port of the peer; null for a peer that connects to this host.";
            };
            presharedKeyFile = mkOption {
              type = types.nullOr secretPath;
              default = null;
              example = "/run/secrets/wg-psk";
              description = "File of a preshared key. It protects recorded traffic against a later quantum computer.";
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
        message = "appliance.network.wireguard.peers is empty: add the other host, with its publicKey and address.";
      }
      {
        assertion = bad (p: p.publicKey == null) == [ ];
        message = "${
          named (bad (p: p.publicKey == null))
        }.publicKey is missing: print it on that host with `wg show wg0 public-key` and set it here.";
      }
      {
        assertion = lib.length (lib.unique keys) == lib.length keys;
        message = "appliance.network.wireguard.peers: two peers have the same publicKey, so one of them would be unreachable: make a key on each host.";
      }
      {
        assertion = twice == [ ];
        message = "appliance.network.wireguard: address ${lib.concatStringsSep ", " twice} is used twice, by this host or its peers: give each its own address in ${cfg.network}.";
      }
      {
        assertion = bad (p: p.endpoint != null && !(isEndpoint p.endpoint)) == [ ];
        message = "${
          named (bad (p: p.endpoint != null && !(isEndpoint p.endpoint)))
        }.endpoint is not ADDRESS:PORT: write the IP address, since a name that DNS cannot resolve at boot leaves the tunnel down.";
      }
      {
        assertion = cfg.listenPort != null || lib.any (p: p.endpoint != null) peers;
        message = "appliance.network.wireguard has neither a listenPort nor a peer with an endpoint, so no side can connect: set listenPort on the VPS, peers.vps.endpoint on the GPU host.";
      }
    ];
    warnings = map (
      name:
      "appliance.network.wireguard.peers.${name}.publicKey is the example of this repository: set the real one before the install."
    ) (bad (p: p.publicKey != null && lib.hasPrefix "ZXhhbXBsZS" p.publicKey));

    boot.kernel.sysctl = {
      # On a line that drops even small packets without an ICMP, TCP finds the size itself.
      "net.ipv4.tcp_mtu_probing" = lib.mkDefault 1;
      # But TCP must not treat a line that is silent for a while as a narrow one for ever.
      "net.ipv4.tcp_mtu_probe_floor" = lib.mkDefault 512;
      # After an outage, streams continue within 5 s, not after the length of the outage. (Linux 6.15 and newer.)
      "net.ipv4.tcp_rto_max_ms" = lib.mkDefault 5000;
      # A response that was finished during the outage is still delivered. By default, the kernel drops data of a closed
      # socket as soon as the pause between two attempts reaches its maximum.
      "net.ipv4.tcp_orphan_retries" = lib.mkDefault 15;
    };

    # A restarted peer has neither the session keys nor the address of this host. A keepalive needs no response, and only
    # traffic without a response makes WireGuard repeat the handshake.
    systemd.services = lib.mapAttrs' (
      name: peer:
      lib.nameValuePair "appliance-tunnel-watch-${name}" {
        description = "Keepalives to ${name} through the tunnel";
        wantedBy = [ "multi-user.target" ];
        after = [ "wireguard-wg0.service" ];
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig = hardened // {
          Type = "exec";
          DynamicUser = true;
          ExecStart = "${lib.getExe' pkgs.iputils "ping"} -q -n -I wg0 -i ${toString cfg.keepaliveSec} ${peer.address}";
          Restart = "always";
          RestartSec = cfg.keepaliveSec;
          # It sends echo requests through the tunnel: an unprivileged ICMP socket, to that peer only. ping looks up
          # the interface over netlink.
          RestrictAddressFamilies = [
            "AF_INET"
            "AF_NETLINK"
          ];
          # ping drops its capabilities and sets its user first, and ends if it cannot. Here both change nothing.
          SystemCallFilter = hardened.SystemCallFilter ++ [
            "capset"
            "setuid"
          ];
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
        # A home router drops a quiet UDP flow within half a minute; a peer learns a new address of this host from it.
        persistentKeepalive = if peer.endpoint == null then null else cfg.keepaliveSec;
      }) (lib.filterAttrs (_: p: p.publicKey != null) cfg.peers);
    };
  };
}
