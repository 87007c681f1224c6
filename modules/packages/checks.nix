# The checks of `nix flake check`: every system builds, the site is valid, format and documentation are current. The
# service works in a virtual machine with the mock engine.
{
  self,
  pkgs,
  packages,
  evaluation,
  vm,
  loadtest-vm,
}:
let
  inherit (pkgs) lib;
  toplevel = name: self.nixosConfigurations.${name}.config.system.build.toplevel;
in
{
  gpu = toplevel "gpu";
  vps = toplevel "vps";
  side = toplevel "side";
  installer = toplevel "installer";
  inherit (packages) appliance loadtest;
  inherit evaluation vm loadtest-vm;
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
}
