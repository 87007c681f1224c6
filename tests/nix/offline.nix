# All cases, against nix-check's option tree. `only` evaluates one case or one other value, so that its error is visible.
{
  libPath,
  tree,
  checker,
  names,
  only ? null,
}:
let
  lib = import libPath;
  pkgs = import (checker + "/pkgs.nix") { inherit lib names; };
  harness = import ./harness.nix { inherit lib pkgs; };
  evaluated =
    modules:
    lib.evalModules {
      class = "nixos";
      specialArgs = {
        inherit pkgs;
        modulesPath = checker + "/modules-path";
      }
      // harness.specialArgs;
      modules = [
        options
        (checker + "/newer.nix")
      ]
      ++ harness.modules
      ++ modules;
    };
  options = import (checker + "/options.nix") {
    inherit lib;
    tree = builtins.fromJSON (builtins.readFile tree);
  };
  evaluate = modules: (evaluated ([ ../../modules ] ++ modules)).config;
  all = import ./cases { inherit lib; };
  quick = lib.filterAttrs (_: case: !(case ? errors)) all;
in
if only == "list" then
  lib.mapAttrs (_: case: {
    kind =
      if case ? errors then
        "errors"
      else if case ? refuses then
        "refuses"
      else if case ? invalid then
        "invalid"
      else
        "gives";
    text = case.errors or case.refuses or case.invalid or "";
  }) all
else if only == "options-doc" then
  import ../../modules/options-text.nix {
    inherit lib;
    options = (evaluated (import ../../modules/documented.nix)).options.appliance;
    root = toString ../..;
  }
else if only == "flake" then
  let
    # Only the names of the outputs are real: nixpkgs is a stand-in.
    self = outputs // {
      outPath = toString ../..;
    };
    outputs = (import ../../flake.nix).outputs {
      inherit self;
      nixpkgs = {
        outPath = toString ./nixpkgs.nix;
        inherit lib;
      };
      disko = {
        nixosModules.disko = { };
        packages.x86_64-linux.disko-install = pkgs.stdenv;
      };
      sops-nix.nixosModules.sops = { };
    };
    pick = lib.genAttrs [ "packages" "apps" "checks" "devShells" "formatter" ] (
      kind: lib.attrNames (outputs.${kind}.x86_64-linux or outputs.${kind})
    );
  in
  pick
  // {
    formatter = lib.attrNames outputs.formatter;
    hosts = lib.attrNames outputs.nixosConfigurations;
    modules = lib.attrNames outputs.nixosModules;
    templates = lib.attrNames outputs.templates;
    apps = lib.mapAttrs (_: app: app.type) outputs.apps.x86_64-linux;
  }
else if only == "engine-cuda" then
  let
    recorded = import ../../modules/packages/engine-cuda.nix {
      inherit lib pkgs;
      stdenv = pkgs.stdenv // {
        mkDerivation = lib.id;
      };
      python313 = {
        pythonVersion = "3.13";
        interpreter = "python";
        pkgs = {
          # Only the address matters: its host is a name that no index has.
          fetchPypi = wheel: {
            url = "https://index.invalid/packages/${wheel.format}/${wheel.pname}.whl";
          };
          pip = "pip";
        };
      };
      fetchurl = lib.id;
      autoPatchelfHook = "hook";
      addDriverRunpath.driverLink = "/run/opengl-driver";
    };
  in
  {
    inherit (recorded)
      version
      srcs
      autoPatchelfIgnoreMissingDeps
      appendRunpaths
      ;
    inputs = lib.length recorded.buildInputs;
  }
else if only != null then
  (import ./run.nix {
    inherit lib evaluate;
    cases = { };
  }).stop
    all.${only}
else
  (import ./run.nix {
    inherit lib evaluate;
    cases = quick;
  }).outcomes
