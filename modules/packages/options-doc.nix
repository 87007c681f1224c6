# docs/options.md, generated from the modules; the check `options-doc` compares it with the repository's file.
{
  lib,
  pkgs,
  runCommand,
  writeText,
  disko,
}:
let
  evaluated = import (pkgs.path + "/nixos/lib/eval-config.nix") {
    system = null;
    modules = import ../documented.nix ++ [
      disko.nixosModules.disko
      {
        nixpkgs.hostPlatform = "x86_64-linux";
        system.stateVersion = "26.05";
      }
    ];
  };
  text = import ../options-text.nix {
    inherit lib;
    options = evaluated.options.appliance;
    root = toString ../..;
  };
in
runCommand "options-doc" { passthru = { inherit text; }; } ''
  mkdir $out
  cp ${writeText "options.md" text} $out/options.md
''
