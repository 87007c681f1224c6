# Evaluates cases with whatever module system it is given: nix-check's offline, the real one in `nix flake check`.
#
# A case is a host, a module on top, and one of
#   refuses  part of the message of an assertion of ours that has to fail
#   errors   part of the message with which evaluation itself has to stop (seen by tests/nix/test_cases.py only)
#   invalid  part of what the configuration's own validation says to the rendered file (seen there only, too)
#   gives/is a value of the evaluated configuration, and what it has to be
{
  lib,
  cases,
  evaluate,
}:
let
  hosts = {
    gpu = ../../hosts/gpu.nix;
    vps = ../../hosts/vps.nix;
    # What `nix flake init -t` gives, as its flake puts it together.
    my-gpu.imports = [
      ../../modules/roles/gpu.nix
      ../../modules/installer/disk.nix
      ../../templates/default/gpu.nix
    ];
    my-vps.imports = [
      ../../modules/roles/vps.nix
      ../../templates/default/vps.nix
    ];
  };
  oneLine =
    text:
    lib.concatStringsSep " " (
      lib.filter (word: word != "") (lib.splitString " " (lib.replaceStrings [ "\n" ] [ " " ] text))
    );
  # Enough of the configuration for a wrong value to be met.
  forced =
    case: config:
    builtins.toJSON [
      (map (a: a.assertion) config.assertions)
      (config.systemd.services.appliance-gateway.serviceConfig or { })
      ((case.forces or (_: null)) config)
    ];
  outcome =
    case:
    let
      config = evaluate [
        hosts.${case.host}
        (case.module or { })
      ];
      failed = map (a: oneLine a.message) (lib.filter (a: !a.assertion) config.assertions);
    in
    if case ? errors then
      {
        fault =
          if
            (builtins.tryEval (builtins.seq (forced case config) (builtins.deepSeq failed true))).success
          then
            "was accepted"
          else
            null;
      }
    else if case ? refuses then
      {
        inherit failed;
        fault =
          if lib.any (lib.hasInfix case.refuses) failed then
            null
          else
            "no assertion says \"${case.refuses}\"";
      }
    else
      {
        inherit failed;
        site = config.environment.etc."appliance/appliance.json".source.text or null;
        got = if case ? gives then case.gives config else null;
        fault =
          if failed != [ ] then
            "refused: ${lib.concatStringsSep "; " failed}"
          else if case ? gives && case.gives config != case.is then
            "gives ${builtins.toJSON (case.gives config)}, not ${builtins.toJSON case.is}"
          else
            null;
      };
in
{
  outcomes = lib.mapAttrs (_: outcome) cases;
  # Stops with the module system's own words.
  stop =
    case:
    forced case (evaluate [
      hosts.${case.host}
      (case.module or { })
    ]);
}
