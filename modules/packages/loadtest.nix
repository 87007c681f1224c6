# `nix run .#loadtest`: the Locust scenarios against a gateway.
{ lib, appliance, python313, writeShellApplication }:
writeShellApplication {
  name = "loadtest";
  runtimeInputs = [ appliance (python313.withPackages (ps: [ ps.locust ])) ];
  text = ''
    exec ${lib.getExe appliance} loadtest "$@"
  '';
}
