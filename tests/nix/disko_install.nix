# The derivations of disko-install for a disk `device`, by its own expression.
{
  flake,
  inputs,
  device,
}:
# disko reads the flake by its path; here it is evaluated already.
builtins.scopedImport { builtins = builtins // { getFlake = _: flake; }; }
  (builtins.storePath inputs.disko + "/install-cli.nix")
  {
    flake = "appliance";
    flakeAttr = "gpu";
    diskMappings.main = device;
    writeEfiBootEntries = true;
    rootMountPoint = "/mnt/disko-install-root";
  }
