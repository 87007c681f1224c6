# The evaluation of cases by a given module system: nix-check's offline, the real one in `nix flake check`.
#
# A case is a host, a module on top, and one of these:
#   `refuses`     part of the message of an assertion of ours that must fail.
#   `errors`      part of the message with which the evaluation must stop. Only tests/nix/test_cases.py checks it.
#   `invalid`     part of the message of `appliance check` about the rendered file. Only test_cases.py checks it.
#   `gives`, `is` a value of the evaluated configuration, and the expected value.
{
  lib,
  cases,
  evaluate,
}:
let
  hosts = {
    gpu = ../../hosts/gpu.nix;
    vps = ../../hosts/vps.nix;
    side = ../../hosts/side.nix;
    # The hosts that `nix flake init -t` writes, with the modules of its flake.
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
  # Enough of the configuration that an invalid value raises its error.
  forced =
    case: config:
    builtins.toJSON [
      (map (a: a.assertion) config.assertions)
      (config.systemd.services.appliance-gateway.serviceConfig or { })
      ((case.forces or (_: null)) config)
    ];
  configuration =
    case:
    evaluate ([ hosts.${case.host} ] ++ lib.optional (case ? module) case.module);
  # Cases without a module of their own share the configuration of their host.
  evaluation =
    name:
    if cases.${name} ? module then "case ${name}" else "host ${cases.${name}.host}";
  # `judge case configuration` by the name of the case: one set for each evaluation.
  byEvaluation =
    judge:
    let
      judged =
        _: names:
        let
          config = configuration cases.${lib.head names};
        in
        lib.genAttrs names (name: judge cases.${name} config);
    in
    lib.mapAttrsToList judged (lib.groupBy evaluation (lib.attrNames cases));
  outcome =
    case: config:
    let
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
            "no failed assertion contains \"${case.refuses}\"";
      }
    else
      {
        inherit failed;
        site = config.environment.etc."appliance/appliance.json".source.value or null;
        got = if case ? gives then case.gives config else null;
        fault =
          if failed != [ ] then
            "refused: ${lib.concatStringsSep "; " failed}"
          else if case ? gives && case.gives config != case.is then
            "gives ${builtins.toJSON (case.gives config)}, not ${builtins.toJSON case.is}"
          else
            null;
      };
  summary =
    case: config:
    let
      result = outcome case config;
    in
    {
      inherit (result) fault;
      failed = result.failed or [ ];
    };
in
{
  outcomes = lib.mergeAttrsList (byEvaluation outcome);
  # The results alone, and one evaluation after the other, so that every configuration can be freed.
  summaries = lib.mergeAttrsList (
    map (results: builtins.deepSeq results results) (byEvaluation summary)
  );
  # The evaluation stops with the error of the module system.
  stop = case: forced case (configuration case);
}
