# `nix run .#plan` and the like: one app per command.
{ pkgs, packages }:
let
  verb = name: {
    type = "app";
    program = pkgs.lib.getExe (
      pkgs.writeShellScriptBin name ''exec ${pkgs.lib.getExe packages.appliance} ${name} "$@"''
    );
    meta.description = "appliance ${name}";
  };
in
{
  default = {
    type = "app";
    program = pkgs.lib.getExe packages.appliance;
    meta.description = "The appliance's command line";
  };
  loadtest = {
    type = "app";
    program = pkgs.lib.getExe packages.loadtest;
    meta.description = "Load-test a gateway";
  };
  plan = verb "plan";
  doctor = verb "doctor";
}
