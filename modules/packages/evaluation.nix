# The evaluation cases of tests/nix/cases against this nixpkgs, for `nix flake check`.
# Its result names the sources that were evaluated, so each tree with its results has its own path of the derivation:
# tests/nix/test_real.py computes that path from the results that it expects.
{
  self,
  pkgs,
  sources,
}:
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
  report =
    summaries:
    let
      wrong = lib.filterAttrs (_: summary: summary.fault != null) summaries;
    in
    pkgs.runCommand "evaluation-cases"
      {
        # Text only: the result refers to no source and to no package.
        results = builtins.unsafeDiscardStringContext (
          builtins.toJSON {
            inherit summaries;
            sources = lib.mapAttrs (_: source: "${source}") sources;
          }
        );
        passAsFile = [ "results" ];
        passthru = { inherit report summaries; };
      }
      (
        if wrong == { } then
          "cp $resultsPath $out"
        else
          throw "evaluation cases: ${
            lib.concatStringsSep "; " (lib.mapAttrsToList (name: summary: "${name}: ${summary.fault}") wrong)
          }"
      );
in
report summaries
