# One host of the flake, evaluated against whole inputs: the texts that NixOS writes for it, and the derivations that
# these texts name. Nothing is built. tests/nix/rendered.py calls it.
{
  root,
  inputs,
  host,
  modules,
  changes,
}:
let
  flake = import ./real_flake.nix { inherit root inputs; };
  inherit (flake.nixosConfigurations.${host}) lib;

  force =
    value:
    if lib.isAttrs value && value != { } then lib.mapAttrs (_: force) value else lib.mkForce value;
  inherit
    (flake.nixosConfigurations.${host}.extendModules {
      modules = map (file: /. + file) modules ++ [ (force changes) ];
    })
    config
    ;
  failed = map (entry: entry.message) (lib.filter (entry: !entry.assertion) config.assertions);

  rendered = {
    units = lib.mapAttrs (_: unit: {
      inherit (unit)
        aliases
        enable
        overrideStrategy
        requiredBy
        text
        wantedBy
        ;
    }) config.systemd.units;
    etc = lib.listToAttrs (
      map (file: lib.nameValuePair file.target "${file.source}") (
        lib.filter (file: file.enable) (lib.attrValues config.environment.etc)
      )
    );
    boot_loader = "${config.system.build.installBootLoader}";
    kernel_parameters = config.boot.kernelParams;
  };
in
if failed != [ ] then
  throw (lib.concatStringsSep "\n" failed)
else
  rendered
  // {
    derivations = lib.filter (lib.hasSuffix ".drv") (
      lib.attrNames (builtins.getContext (builtins.toJSON rendered))
    );
  }
