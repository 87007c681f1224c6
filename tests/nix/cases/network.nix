# Tunnel, firewall, SSH, edge.
{ lib }:
let
  wg = more: { appliance.network.wireguard = more; };
  key = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
  input = c: c.networking.nftables.tables.appliance.content;
  api = c: lib.filter (lib.hasInfix "dport 8000") (lib.splitString "\n" (input c));
  virtual = c: c.services.nginx.virtualHosts."llm.example.org";
in
{
  "a peer without its key" = { host = "gpu"; module = wg { peers.vps.publicKey = lib.mkForce null; }; refuses = "appliance.network.wireguard.peers.vps.publicKey is missing: print it on that host"; };
  "no peer at all" = { host = "gpu"; module = wg { peers = lib.mkForce { }; }; refuses = "appliance.network.wireguard.peers is empty"; };
  "two peers with one key" = { host = "gpu"; module = wg { peers.vps.publicKey = lib.mkForce key; peers.vps2 = { publicKey = key; address = "10.77.0.3"; }; }; refuses = "two peers have one publicKey"; };
  "an address that two peers have" = { host = "gpu"; module = wg { peers.vps2 = { publicKey = key; address = "10.77.0.2"; }; }; refuses = "address 10.77.0.2 is used twice"; };
  "a peer with this host's address" = { host = "gpu"; module = wg { peers.vps2 = { publicKey = key; address = "10.77.0.1"; }; }; refuses = "address 10.77.0.1 is used twice"; };
  "an endpoint by name" = { host = "gpu"; module = wg { peers.vps.endpoint = lib.mkForce "vps.example.org:51820"; }; refuses = "peers.vps.endpoint is no ADDRESS:PORT: write the IP address"; };
  "a tunnel nobody begins" = { host = "vps"; module = wg { listenPort = lib.mkForce null; }; refuses = "neither a listenPort nor a peer with an endpoint"; };
  "a second VPS is a second peer" = { host = "gpu"; module = wg { peers.vps2 = { publicKey = key; address = "10.77.0.3"; endpoint = "198.51.100.7:51820"; }; }; gives = c: map (p: p.allowedIPs) c.networking.wireguard.interfaces.wg0.peers; is = [ [ "10.77.0.2/32" ] [ "10.77.0.3/32" ] ]; };
  "the private key is made on the host" = { host = "gpu"; gives = c: { inherit (c.networking.wireguard.interfaces.wg0) generatePrivateKeyFile privateKeyFile; }; is = { generatePrivateKeyFile = true; privateKeyFile = "/var/lib/wireguard/wg0.key"; }; };

  "the API only through the tunnel, from its peers" = { host = "gpu"; gives = api; is = [ "    iifname \"wg0\" ip saddr { 10.77.0.2 } tcp dport 8000 accept" ]; };
  "a VPS does not open the API's port" = { host = "vps"; gives = api; is = [ ]; };
  "the VPS opens HTTP and the tunnel" = { host = "vps"; gives = c: map (rule: lib.hasInfix rule (input c)) [ "tcp dport { 80, 443 } accept" "udp dport 51820 accept" ]; is = [ true true ]; };
  "the GPU host opens neither" = { host = "gpu"; gives = c: map (rule: lib.hasInfix rule (input c)) [ "443" "udp dport 51820" ]; is = [ false false ]; };
  "everything else is dropped" = { host = "gpu"; gives = c: [ c.networking.firewall.enable (lib.hasInfix "hook input priority filter; policy drop;" (input c)) ]; is = [ false true ]; };

  "SSH without a key" = { host = "gpu"; module.appliance.network.ssh.keys = lib.mkForce [ ]; refuses = "you would lock yourself out"; };
  "SSH takes no password" = { host = "vps"; gives = c: { inherit (c.services.openssh.settings) PasswordAuthentication KbdInteractiveAuthentication PermitRootLogin; }; is = { PasswordAuthentication = false; KbdInteractiveAuthentication = false; PermitRootLogin = "prohibit-password"; }; };

  "HTTP/2 on a broken nginx" = { host = "vps"; module.services.nginx.virtualHosts."llm.example.org".http2 = true; refuses = "has memory corruption there (CVE-2026-123007, mended in 1.30.7)"; };
  "HTTP/2 stays off before 1.30.7" = { host = "vps"; gives = c: (virtual c).http2; is = false; };
  "HTTP/2 comes back with 1.30.7" = { host = "vps"; module = { pkgs, ... }: { services.nginx.package = pkgs.nginx // { version = "1.30.7"; }; }; gives = c: (virtual c).http2; is = true; };
  "tokens are not buffered" = { host = "vps"; gives = c: lib.hasInfix "proxy_buffering off;" (virtual c).locations."/v1/".extraConfig; is = true; };
  "an unknown name gets nothing" = { host = "vps"; gives = c: { inherit (c.services.nginx.virtualHosts."_") default rejectSSL; }; is = { default = true; rejectSSL = true; }; };
  "no gateway behind the edge" = { host = "vps"; module.appliance.network.edge.gateways = lib.mkForce [ ]; refuses = "appliance.network.edge.gateways is empty"; };
  "only the API's paths go through" = { host = "vps"; gives = c: (virtual c).locations."/".return; is = "404"; };
}
