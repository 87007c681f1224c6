# One nftables table that drops by default. NixOS's own firewall is off: with two tables, an operator would have to
# look in two places for a drop.
{ config, lib, ... }:
let
  inherit (config) appliance;
  inherit (config.appliance)
    deadman
    gateway
    network
    observe
    search
    settings
    ;
  cfg = network.firewall;
  wg = network.wireguard;
  rule = test: text: lib.optionalString test "    ${text}\n";
  isV6 = lib.hasInfix ":";
  set = elements: "{ ${lib.concatStringsSep ", " elements} }";
  sshFrom =
    family: sources:
    rule (network.ssh.enable && sources != [ ])
      "${family} saddr ${set sources} tcp dport ${toString network.ssh.port} ct state new limit rate 30/minute burst 20 packets accept";
  peerAddresses = map (p: p.address) (lib.attrValues wg.peers);
  ranks = lib.filterAttrs (_: part: !(lib.elem null part.links)) appliance.myRanks;
  rankRule =
    part:
    let
      own = lib.elemAt part.links part.rank;
      others = lib.filter (link: link.address != own.address) part.links;
      from =
        family: links:
        rule (links != [ ])
          "iifname \"${own.interface}\" ${family} saddr ${set (map (link: link.address) links)} tcp dport ${
            set (map toString part.ports ++ [ "32768-60999" ])
          } accept";
    in
    from "ip" (lib.filter (link: !(isV6 link.address)) others)
    + from "ip6" (lib.filter (link: isV6 link.address) others);
  held = toString network.edge.limits.perAddressTcpConnections;
  searchPorts = map toString [
    search.port
    search.fetcherPort
  ];
  # Grafana, if it listens on the tunnel's address.
  grafana = observe.grafana.enable && wg.enable && observe.grafana.host == wg.address;
  # Units that listen on the network, or make it reachable.
  behind =
    lib.optional gateway.enable "appliance-gateway"
    ++ lib.optionals appliance.engines.enable (
      lib.mapAttrsToList (
        name: part: "appliance-engine-${name}${lib.optionalString (part.rank > 0) ".rank${toString part.rank}"}"
      ) (lib.filterAttrs (_: part: part.rank == 0 || part.engine.distributed == "native") ranks)
    )
    ++ lib.optional grafana "grafana"
    ++ lib.optional wg.enable "wireguard-wg0"
    ++ lib.optional network.edge.enable "nginx"
    ++ lib.optionals search.enable [
      "searx"
      "appliance-fetcher"
    ];
in
{
  options.appliance.network.firewall = {
    enable = lib.mkEnableOption "the firewall, which drops all packets without a rule";
    extraInput = lib.mkOption {
      type = lib.types.lines;
      default = "";
      example = "iifname \"lan0\" tcp dport 9100 accept";
      description = "More nftables rules for the input chain. Give the reason for each in a comment.";
    };
  };

  config = lib.mkIf cfg.enable {
    networking.firewall.enable = false;
    # Fail closed: if the rules do not load, the machine has none at all, so these units do not start. SSH starts, with
    # keys only: an operator must be able to log in and fix it.
    systemd.services = lib.genAttrs behind (_: {
      requires = [ "nftables.service" ];
      after = [ "nftables.service" ];
    });
    networking.nftables = {
      enable = true;
      tables.appliance = {
        family = "inet";
        content =
          lib.optionalString network.edge.enable ''
            set edge4 { type ipv4_addr; flags dynamic; size 65536; }
            set edge6 { type ipv6_addr; flags dynamic; size 65536; }
          ''
          + ''
            chain input {
              type filter hook input priority filter; policy drop;
              ct state invalid drop
              ct state { established, related } accept
              iifname "lo" accept
              ip protocol icmp icmp type echo-request limit rate 10/second accept
              # IPv6 does not work without neighbour discovery and packet-too-big.
              icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
              icmpv6 type echo-request limit rate 10/second accept
              ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept
          ''
          + rule (wg.enable && wg.listenPort != null) "udp dport ${toString wg.listenPort} accept"
          # The API is reachable only through the tunnel, from its peers.
          + rule (
            gateway.enable && wg.enable && peerAddresses != [ ]
          ) "iifname \"wg0\" ip saddr ${set peerAddresses} tcp dport ${toString settings.gateway.port} accept"
          # Beats, announcements and the scrape of the dead man's switch: from the host that it watches only.
          + rule (
            deadman.enable && wg.peers ? ${deadman.home}
          ) "iifname \"wg0\" ip saddr ${wg.peers.${deadman.home}.address} tcp dport ${toString deadman.port} accept"
          # SearXNG and the page fetcher: from the hosts with an assistant.
          + rule (search.enable && wg.enable) "iifname \"wg0\" ip saddr ${set search.clients} tcp dport ${set searchPorts} accept"
          # The dashboards likewise.
          + rule (
            grafana && peerAddresses != [ ]
          ) "iifname \"wg0\" ip saddr ${set peerAddresses} tcp dport ${toString observe.grafana.port} accept"
          # The ranks of an engine over several hosts accept pickles without authentication: from each other only.
          + lib.concatMapStrings rankRule (lib.attrValues ranks)
          # nginx cannot count open connections without a request. An IPv6 client has a whole /64.
          + rule network.edge.enable "tcp dport { 80, 443 } ct state new add @edge4 { ip saddr ct count over ${held} } drop"
          + rule network.edge.enable "tcp dport { 80, 443 } ct state new add @edge6 { ip6 saddr & ffff:ffff:ffff:ffff:: ct count over ${held} } drop"
          + rule network.edge.enable "tcp dport { 80, 443 } accept"
          + rule (
            network.ssh.enable && wg.enable
          ) "iifname \"wg0\" tcp dport ${toString network.ssh.port} accept"
          + sshFrom "ip" (lib.filter (s: !(isV6 s)) network.ssh.sources)
          + sshFrom "ip6" (lib.filter isV6 network.ssh.sources)
          + lib.concatMapStrings (rule true) (lib.filter (l: l != "") (lib.splitString "\n" cfg.extraInput))
          + ''
            }
            chain forward {
              type filter hook forward priority filter; policy drop;
            }
          '';
      };
    };
  };
}
