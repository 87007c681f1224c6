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
  # Bash ignores `set -e` in a function that an `if` calls, so a failed copy would end as a finished install.
  disko-install = disko.packages.${pkgs.stdenv.hostPlatform.system}.disko-install.overrideAttrs {
    postPatch = ''
      sed -i 's/^if main "$@"; then$/main "$@"\nif true; then/' disko-install
      grep -qx 'main "$@"' disko-install
    '';
  };
  iso = self.nixosConfigurations.installer.config.system.build.isoImage;
}
