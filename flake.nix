{
  description = "A private LLM service on bare machines: GPU server, VPS and installer, all pinned";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    disko = {
      url = "github:nix-community/disko";
      inputs.nixpkgs.follows = "nixpkgs";
    };
    sops-nix = {
      url = "github:Mic92/sops-nix";
      inputs.nixpkgs.follows = "nixpkgs";
    };
  };

  outputs =
    {
      self,
      nixpkgs,
      disko,
      sops-nix,
    }:
    let
      system = "x86_64-linux";
      pkgs = import nixpkgs {
        inherit system;
        config.allowUnfree = true;
      };
      # Nix checks the outputs in the order in which their names first occur here. The hosts are the last: their
      # configurations stay in memory, and those of the evaluation cases and of the virtual machines are freed.
      checks = import ./modules/packages/checks.nix {
        inherit
          evaluation
          vm
          loadtest-vm
          self
          pkgs
          packages
          ;
      };
      inherit (import ./modules/packages/vm-tests.nix { inherit self pkgs packages; }) vm loadtest-vm;
      evaluation = import ./modules/packages/evaluation.nix {
        inherit self pkgs;
        sources = {
          inherit
            self
            nixpkgs
            disko
            sops-nix
            ;
        };
      };
      packages = import ./modules/packages { inherit self pkgs disko; };
      role = module: {
        imports = [
          disko.nixosModules.disko
          sops-nix.nixosModules.sops
          module
        ];
      };
      host =
        module: specialArgs:
        nixpkgs.lib.nixosSystem {
          inherit system specialArgs;
          modules = [
            (role module)
            { nixpkgs.pkgs = pkgs; }
          ];
        };
    in
    {
      nixosModules = {
        default = role ./modules;
        gpu = role ./modules/roles/gpu.nix;
        vps = role ./modules/roles/vps.nix;
        side = role ./modules/roles/side.nix;
        installer = ./modules/installer/iso.nix;
        disk = ./modules/installer/disk.nix;
      };

      nixosConfigurations = {
        gpu = host ./hosts/gpu.nix { };
        vps = host ./hosts/vps.nix { };
        side = host ./hosts/side.nix { };
        installer = host ./hosts/installer.nix {
          flakeSource = self;
          installClosure = self.lib.installClosure self.nixosConfigurations.gpu {
            inherit nixpkgs disko sops-nix;
          };
          diskoInstall = packages.disko-install;
        };
      };

      # For the ISO of your own site: see templates/default/flake.nix.
      lib.installClosure =
        target: inputs:
        import ./modules/installer/closure.nix {
          inherit (nixpkgs) lib;
          inherit target inputs;
        };

      packages.${system} = packages;
      apps.${system} = import ./modules/packages/apps.nix { inherit pkgs packages; };
      checks.${system} = checks;
      devShells.${system}.default = import ./modules/packages/shell.nix { inherit pkgs; };
      formatter.${system} = pkgs.nixfmt-tree;
      templates.default = {
        path = ./templates/default;
        description = "Your own site: only your values";
      };
    };
}
