# The derivations that disko-install builds on the ISO, by its own expression for another device, and the contents of
# the ISO.
{ flake, inputs }:
let
  inherit (flake.nixosConfigurations.gpu) lib;
  # disko reads the flake by its path; here it is evaluated already.
  install =
    builtins.scopedImport { builtins = builtins // { getFlake = _: flake; }; }
      (builtins.storePath inputs.disko + "/install-cli.nix")
      {
        flake = "appliance";
        flakeAttr = "gpu";
        diskMappings.main = "/dev/nvme9n1";
        writeEfiBootEntries = true;
        rootMountPoint = "/mnt/disko-install-root";
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
