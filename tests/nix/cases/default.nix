# All evaluation cases, by name.
{ lib }:
let
  files = [
    ./gpu.nix
    ./pins.nix
    ./site.nix
    ./network.nix
    ./units.nix
    ./typos.nix
    ./doctor.nix
    ./notify.nix
    ./deadman.nix
    ./gpu_watch.nix
    ./observe.nix
    ./power.nix
    ./backup.nix
    ./assistant.nix
    ./http_engines.nix
    ./search.nix
    ./telegram.nix
    ./side.nix
    ./nodes.nix
  ];
  sets = map (file: import file { inherit lib; }) files;
  all = lib.foldl' (a: b: a // b) { } sets;
in
assert lib.length (lib.attrNames all) == lib.foldl' (n: s: n + lib.length (lib.attrNames s)) 0 sets;
all
