# The contents of the ISO, from which disko-install works without a network. They are the finished system, the sources
# for the evaluation, and the inputs of the derivations that the installer builds. It builds the scripts that partition
# and mount the disk, since the device is known only then, and a list of the system's store paths.
{
  lib,
  target,
  inputs,
}:
let
  inherit (target.config.system) build;
  sources = flake: [ flake.outPath ] ++ lib.concatMap sources (lib.attrValues (flake.inputs or { }));
in
# Not the derivations themselves (`drvPath`): with all that they were built from, down to the compiler's bootstrap, the
# ISO would have gigabytes more. tests/nix/test_offline_install.py follows the graph of the derivations.
[
  build.toplevel
  # The scripts contain the paths of the programs that they call.
  build.diskoScript
  build.formatScript
  build.mountScript
  # For building scripts: disko writes them with nixpkgs' writers.
  target.pkgs.makeBinaryWrapper
  build.diskoScript.inputDerivation
  (target.pkgs.closureInfo { rootPaths = [ ]; }).inputDerivation
]
++ lib.unique (lib.concatMap sources (lib.attrValues inputs))
