# The GPU server: engines and gateway, reachable only through the tunnel.
{ config, lib, ... }:
{
  imports = [ ../default.nix ];
  appliance = {
    base.enable = lib.mkDefault true;
    doctor.enable = lib.mkDefault true;
    gpu.enable = lib.mkDefault true;
    gpuWatch.enable = lib.mkDefault config.appliance.gpu.enable;
    memory.enable = lib.mkDefault true;
    models.enable = lib.mkDefault true;
    engines.enable = lib.mkDefault true;
    gateway.enable = lib.mkDefault true;
    assistant.enable = lib.mkDefault config.appliance.gateway.enable;
    smoke.enable = lib.mkDefault true;
    observe.enable = lib.mkDefault true;
    network.firewall.enable = lib.mkDefault true;
    network.ssh.enable = lib.mkDefault true;
    network.wireguard.enable = lib.mkDefault true;
  };
}
