# The installer of the ISO as evaluated: its script with its settings, and disko's script by disko-install's own
# expression. With them are the file systems that the installed system mounts.
{
  flake,
  inputs,
  root,
}:
let
  host = flake.nixosConfigurations.gpu;
  inherit (host) lib pkgs;
  install = import ../nix/disko_install.nix {
    inherit flake inputs;
    device = "/dev/nvme0n1";
  };
  # The module alone. The ISO around it would take minutes, and changes nothing of the script.
  iso =
    (import (root + "/modules/installer/iso.nix") {
      inherit (lib.evalModules { modules = [ (root + "/modules/installer/options.nix") ]; }) config;
      inherit lib pkgs;
      flakeSource = root;
      installClosure = [ ];
      diskoInstall = flake.packages.x86_64-linux.disko-install;
    }).config;
in
{
  script = install.diskoScript.drvPath;
  installer = (lib.head iso.environment.systemPackages).drvPath;
  disko_install = flake.packages.x86_64-linux.disko-install.drvPath;
  limits = iso.environment.etc."appliance-installer/limits".text;
  file_systems = lib.mapAttrs (_: mounted: {
    inherit (mounted) device fsType options;
  }) (lib.filterAttrs (path: _: lib.elem path [ "/" "/boot" ]) host.config.fileSystems);
}
