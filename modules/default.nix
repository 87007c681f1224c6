# All modules of the appliance. Each is disabled until a role (roles/gpu.nix, roles/vps.nix, roles/side.nix) or a host enables it, so
# importing this module alone changes no machine.
{ lib, ... }:
let
  oldest = "26.05";
  inherit (lib.trivial) release;
in
{
  # Before anything else: an older NixOS lacks options, and each would be an error of its own.
  imports =
    if lib.versionOlder release oldest then
      throw "appliance: this nixpkgs is ${release}, and the modules need ${oldest} or newer: set inputs.nixpkgs.url to a newer branch, or let it follow the appliance's own nixpkgs"
    else
      [
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
        ./assistant.nix
        ./search.nix
        ./whisper.nix
        ./n8n.nix
        ./telegram.nix
        ./smoke.nix
        ./trial.nix
        ./notify.nix
        ./power.nix
        ./doctor.nix
        ./deadman.nix
        ./observe
        ./backup.nix
        ./backup-server.nix
        ./pool.nix
        ./network/firewall.nix
        ./network/ssh.nix
        ./network/wireguard.nix
        ./network/edge.nix
      ];
}
