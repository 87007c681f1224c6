# `nix run .#loadtest`: the Locust scenarios against a gateway.
{
  lib,
  appliance,
  writeShellApplication,
}:
writeShellApplication {
  name = "loadtest";
  text = ''
    exec ${lib.getExe appliance} loadtest "$@"
  '';
}
