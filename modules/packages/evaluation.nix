# The evaluation cases of tests/nix/cases against this nixpkgs, for `nix flake check`.
{ self, pkgs }:
let
  inherit (pkgs) lib;
  cases = import ../../tests/nix/cases { inherit lib; };
  # All cases share one `pkgs`: a nixpkgs for each of them would need many times the memory.
  shared = {
    nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform.system;
    _module.args.pkgs = lib.mkForce pkgs;
  };
  # Selected, not inherited: an inherited name would keep all configurations.
  summaries =
    (import ../../tests/nix/run.nix {
      inherit lib cases;
      evaluate =
        modules:
        (import (pkgs.path + "/nixos/lib/eval-config.nix") {
          system = null;
          modules = [
            self.nixosModules.default
            shared
          ]
          ++ modules;
        }).config;
    }).summaries;
  wrong = lib.filterAttrs (_: summary: summary.fault != null) summaries;
in
pkgs.runCommand "evaluation-cases" { passthru = { inherit summaries; }; } (
  if wrong == { } then
    "echo ${toString (lib.length (lib.attrNames cases))} cases hold > $out"
  else
    throw "evaluation cases: ${
      lib.concatStringsSep "; " (lib.mapAttrsToList (name: summary: "${name}: ${summary.fault}") wrong)
    }"
)
