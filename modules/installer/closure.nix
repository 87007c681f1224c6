# What the ISO has to hold so that disko-install works without a network: the finished system, the script that
# partitions (built again there, for the disk's device is only known then), and the sources it is evaluated from.
{
  lib,
  target,
  inputs,
}:
let
  inherit (target.config.system) build;
  sources = flake: [ flake.outPath ] ++ lib.concatMap sources (lib.attrValues (flake.inputs or { }));
in
[
  build.toplevel
  build.diskoScript
  build.diskoScript.drvPath
  target.pkgs.stdenv.drvPath
  (target.pkgs.closureInfo { rootPaths = [ ]; }).drvPath
]
++ lib.unique (lib.concatMap sources (lib.attrValues inputs))
