# All modules of the appliance. Each is disabled until a role (roles/gpu.nix, roles/vps.nix) or a host enables it, so
# importing this module alone changes no machine.
{
  imports = [
    ./contract.nix
    ./pins.nix
    ./package.nix
    ./base.nix
    ./gpu
    ./memory.nix
    ./numa.nix
    ./models.nix
    ./engines.nix
    ./gateway.nix
    ./admin.nix
    ./smoke.nix
    ./trial.nix
    ./doctor.nix
    ./network/firewall.nix
    ./network/ssh.nix
    ./network/wireguard.nix
    ./network/edge.nix
  ];
}
