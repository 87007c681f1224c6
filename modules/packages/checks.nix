# The checks of `nix flake check`: every system builds, the site is valid, format and documentation are current. The
# service works in a virtual machine with the mock engine.
{
  self,
  pkgs,
  packages,
}:
let
  inherit (pkgs) lib;
  toplevel = name: self.nixosConfigurations.${name}.config.system.build.toplevel;
  cases = import ../../tests/nix/cases { inherit lib; };
  results =
    (import ../../tests/nix/run.nix {
      inherit lib cases;
      evaluate =
        modules:
        (import (pkgs.path + "/nixos/lib/eval-config.nix") {
          system = null;
          modules = [
            self.nixosModules.default
            { nixpkgs.hostPlatform = "x86_64-linux"; }
          ]
          ++ modules;
        }).config;
    }).outcomes;
  wrong = lib.filterAttrs (_: result: result.fault != null) results;
in
{
  gpu = toplevel "gpu";
  vps = toplevel "vps";
  installer = toplevel "installer";
  inherit (packages) appliance loadtest;
  evaluation = pkgs.runCommand "evaluation-cases" { } (
    if wrong == { } then
      "echo ${toString (lib.length (lib.attrNames results))} cases hold > $out"
    else
      throw "evaluation cases: ${
        lib.concatStringsSep "; " (lib.mapAttrsToList (name: r: "${name}: ${r.fault}") wrong)
      }"
  );
  formatting = pkgs.runCommand "formatting" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
    find ${self} -name '*.nix' -print0 | xargs -0 nixfmt --check
    touch $out
  '';
  options-doc = pkgs.runCommand "options-doc-current" { } ''
    diff -u ${../../docs/options.md} ${packages.options-doc}/options.md
    touch $out
  '';
  example-sites = pkgs.runCommand "example-sites" { } ''
    for file in ${../../examples}/*.toml; do ${lib.getExe packages.appliance} check "$file"; done
    touch $out
  '';
  vm = pkgs.testers.runNixOSTest (import ./vm-test.nix { inherit self; });
  loadtest-vm = pkgs.testers.runNixOSTest (import ./loadtest-vm.nix { inherit self packages; });
}
