# Errors of the module system itself: unknown options, invalid types, secrets that would reach the store. `forces` is the
# value whose evaluation raises the error, if no assertion reads it.
{ lib }:
{
  "a typo in an option" = {
    host = "gpu";
    module.appliance.memory.hugepage.reserveGiB = 4;
    errors = "The option `appliance.memory.hugepage' does not exist";
  };
  "a typo in an option of the trial" = {
    host = "gpu";
    module.appliance.trial.deadline = 1800;
    errors = "The option `appliance.trial.deadline' does not exist";
  };
  "a typo in an option of the tunnel" = {
    host = "vps";
    module.appliance.network.wireguard.peers.gpu.endpoints = [ "203.0.113.9:51820" ];
    errors = "wireguard.peers.gpu.endpoints' does not exist";
  };
  "a secret in the store" = {
    host = "gpu";
    module.appliance.gateway.credentials.admin = ./default.nix;
    errors = "absolute path outside the Nix store, in quotes";
  };
  "a secret by its store path" = {
    host = "gpu";
    module.appliance.gateway.credentials.admin = "/nix/store/aaaa-token";
    errors = "every user can read the store";
  };
  "a private key in the store" = {
    host = "gpu";
    module.appliance.network.wireguard.privateKeyFile = ./default.nix;
    forces = c: c.networking.wireguard.interfaces.wg0.privateKeyFile;
    errors = "absolute path outside the Nix store";
  };
  "an invalid public key" = {
    host = "gpu";
    module.appliance.network.wireguard.peers.vps.publicKey = lib.mkForce "abc";
    errors = "peers.vps.publicKey' is not of type";
  };
  "an invalid choice of peer-to-peer" = {
    host = "gpu";
    module.appliance.gpu.peerToPeer = "on";
    forces = c: c.boot.extraModprobeConfig;
    errors = "one of \"driver\", \"iommu-off\", \"off\"";
  };
  "a port beyond 65535" = {
    host = "gpu";
    module.appliance.settings.engines.agents.port = lib.mkForce 70000;
    errors = "engines.agents.port' is not of type";
  };
  "a gateway at a public address" = {
    host = "vps";
    module.appliance.network.edge.gateways = lib.mkForce [ "203.0.113.9" ];
    forces = c: c.services.nginx.upstreams.gateway.servers;
    errors = "edge.gateways";
  };
}
