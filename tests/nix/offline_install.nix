# The derivations that disko-install builds on the ISO, by its own expression for another device, and the contents of
# the ISO.
{ flake, inputs }:
let
  inherit (flake.nixosConfigurations.gpu) lib;
  install = import ./disko_install.nix {
    inherit flake inputs;
    device = "/dev/nvme9n1";
  };
in
{
  builds = lib.mapAttrs (_: derivation: derivation.drvPath) {
    inherit (install)
      closureInfo
      diskoScript
      formatScript
      installToplevel
      mountScript
      ;
  };
  patch = flake.packages.x86_64-linux.disko-install.postPatch;
  installed = flake.nixosConfigurations.gpu.config.system.build.toplevel.drvPath;
  contents = map (entry: entry.drvPath) (
    lib.filter lib.isDerivation (
      # The sources of the flake are on the ISO as well; no derivation needs them.
      flake.lib.installClosure flake.nixosConfigurations.gpu { }
    )
  );
}
