# The contents of the ISO, from which disko-install works without a network. They are the finished system, the script
# that partitions the disk, and the sources for the evaluation. The installer builds that script again, because the device of the disk
# is known only then.
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
