{
  description = "My LLM service";

  # Where you keep the appliance's repository. Update with `nix flake update appliance`.
  inputs.appliance.url = "github:example/llm-appliance";

  outputs = { appliance, ... }:
    let
      inherit (appliance.inputs.nixpkgs.lib) nixosSystem;
      system = "x86_64-linux";
    in
    {
      nixosConfigurations = {
        gpu = nixosSystem { inherit system; modules = [ appliance.nixosModules.gpu appliance.nixosModules.disk ./gpu.nix ]; };
        vps = nixosSystem { inherit system; modules = [ appliance.nixosModules.vps ./vps.nix ]; };
      };
      packages.${system} = { inherit (appliance.packages.${system}) appliance loadtest; };
    };
}
