# The ISO of the installer: `nix build .#iso`.
{ modulesPath, ... }:
{
  imports = [
    (modulesPath + "/installer/cd-dvd/installation-cd-minimal.nix")
    ../modules/installer/iso.nix
  ];

  networking.hostName = "installer";
  system.stateVersion = "26.05";
}
