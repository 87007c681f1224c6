# The flake with whole inputs from the store, without the fetchers of Nix. `root` is a folder, or a store path as a string.
{ root, inputs }:
let
  # A flake from its source.
  call =
    source: given:
    let
      outputs = (import (source + "/flake.nix")).outputs (given // { inherit self; });
      self = outputs // {
        outPath = source;
      };
    in
    self;
  stored = builtins.mapAttrs (_: builtins.storePath) inputs;
  nixpkgs = call stored.nixpkgs { };
  source = if dirOf root == builtins.storeDir then builtins.storePath root else /. + root;
in
call source {
  inherit nixpkgs;
  disko = call stored.disko { inherit nixpkgs; };
  sops-nix = call stored.sops-nix { inherit nixpkgs; };
}
