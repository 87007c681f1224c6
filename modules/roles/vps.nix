# The VPS: a public address with TLS, and the tunnel behind it. It never stores a model, a key or a chat.
{ lib, ... }:
{
  imports = [ ../default.nix ];
  appliance = {
    base.enable = lib.mkDefault true;
    doctor.enable = lib.mkDefault true;
    network.firewall.enable = lib.mkDefault true;
    network.ssh.enable = lib.mkDefault true;
    network.ssh.sources = lib.mkDefault [
      "0.0.0.0/0"
      "::/0"
    ];
    network.wireguard.enable = lib.mkDefault true;
    network.edge.enable = lib.mkDefault true;
  };
}
