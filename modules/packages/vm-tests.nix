# The tests in virtual machines. Each works with the mock engine; `interactive` is its driver for use by hand.
{
  self,
  pkgs,
  packages,
}:
let
  # The derivation alone: with the attributes of the test, `nix flake check` would keep the configuration of its
  # machine until it ends.
  alone =
    test:
    let
      derivation = {
        inherit (test)
          type
          name
          system
          outputName
          drvPath
          outPath
          ;
      };
    in
    builtins.deepSeq derivation derivation;
  make =
    test:
    alone (pkgs.testers.runNixOSTest test)
    // {
      interactive = (pkgs.testers.runNixOSTest test).driverInteractive;
    };
in
{
  vm = make (import ./vm-test.nix { inherit self; });
  loadtest-vm = make (import ./loadtest-vm.nix { inherit self packages; });
}
