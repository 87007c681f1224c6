{
  description = "My LLM service";

  # The address of the appliance's repository. Update with `nix flake update appliance`.
  inputs.appliance.url = "github:example/llm-appliance";

  outputs =
    { self, appliance }:
    let
      inherit (appliance.inputs) nixpkgs;
      inherit (nixpkgs.lib) nixosSystem;
      system = "x86_64-linux";
    in
    {
      nixosConfigurations = {
        gpu = nixosSystem {
          inherit system;
          modules = [
            appliance.nixosModules.gpu
            appliance.nixosModules.disk
            ./gpu.nix
          ];
        };
        vps = nixosSystem {
          inherit system;
          modules = [
            appliance.nixosModules.vps
            ./vps.nix
          ];
        };
        installer = nixosSystem {
          inherit system;
          specialArgs = {
            flakeSource = self;
            installClosure = appliance.lib.installClosure self.nixosConfigurations.gpu { inherit appliance; };
            diskoInstall = appliance.packages.${system}.disko-install;
          };
          modules = [
            "${nixpkgs}/nixos/modules/installer/cd-dvd/installation-cd-minimal.nix"
            appliance.nixosModules.installer
            {
              networking.hostName = "installer";
              system.stateVersion = "26.05";
            }
          ];
        };
      };
      packages.${system} = {
        inherit (appliance.packages.${system}) appliance loadtest;
        iso = self.nixosConfigurations.installer.config.system.build.isoImage;
      };
    };
}
