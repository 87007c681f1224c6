# The side box: a machine with a card of another maker. Its own gateway serves embeddings and speech to the GPU server,
# with a key and through the tunnel; n8n runs on the same machine. Its death takes away its own models only.
{ lib, ... }:
{
  imports = [ ../default.nix ];
  appliance = {
    base.enable = lib.mkDefault true;
    doctor.enable = lib.mkDefault true;
    memory.enable = lib.mkDefault true;
    models.enable = lib.mkDefault true;
    engines.enable = lib.mkDefault true;
    gateway.enable = lib.mkDefault true;
    smoke.enable = lib.mkDefault true;
    network.firewall.enable = lib.mkDefault true;
    network.ssh.enable = lib.mkDefault true;
    network.wireguard.enable = lib.mkDefault true;
  };
}
