# The appliance's own package, which every unit of ours runs.
{ lib, pkgs, ... }:
{
  options.appliance.package = lib.mkOption {
    type = lib.types.package;
    default = pkgs.callPackage ./packages/appliance.nix { };
    defaultText = lib.literalMD "this flake's own package";
    example = lib.literalExpression "inputs.appliance.packages.x86_64-linux.appliance";
    description = "The appliance itself: gateway, command line, engine start.";
  };
}
