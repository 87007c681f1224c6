# The packages of the flake.
{
  self,
  pkgs,
  disko,
}:
let
  appliance = pkgs.callPackage ./appliance.nix { };
in
{
  inherit appliance;
  default = appliance;
  engine-cuda = pkgs.callPackage ./engine-cuda.nix { };
  loadtest = pkgs.callPackage ./loadtest.nix { inherit appliance; };
  options-doc = pkgs.callPackage ./options-doc.nix { inherit disko; };
  disko-install = disko.packages.${pkgs.stdenv.hostPlatform.system}.disko-install;
  iso = self.nixosConfigurations.installer.config.system.build.isoImage;
}
