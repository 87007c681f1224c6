# Arguments and modules of the hosts for an evaluation without nixpkgs, which flake.nix gives them otherwise. They are
# stand-ins for the sources of the flake, and options newer than the checker's list of December 2024.
{ lib, pkgs }:
{
  specialArgs = {
    flakeSource = "/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-source";
    installClosure = [ pkgs.stdenv ];
    diskoInstall = pkgs.stdenv;
  };
  modules = [
    {
      # https://github.com/NixOS/nixpkgs/pull/473282, in nixos-26.05: changes that a live switch refuses.
      options.system.switch.inhibitors = lib.mkOption {
        type = lib.types.attrsOf lib.types.str;
        default = { };
      };
      # In nixos-26.05.
      options.power.ups.package = lib.mkOption {
        type = lib.types.package;
        default = pkgs.nut;
      };
      # In nixos-26.05.
      options.services.searx.openFirewall = lib.mkOption {
        type = lib.types.bool;
        default = false;
      };
      # In nixos-26.05: secrets of n8n as credentials, and runners in a unit of their own; `settings` is removed.
      options.services.n8n = {
        environment = lib.mkOption {
          type = lib.types.submodule {
            freeformType = lib.types.attrsOf (
              lib.types.oneOf [
                lib.types.str
                (lib.types.coercedTo lib.types.int toString lib.types.str)
                (lib.types.coercedTo lib.types.bool builtins.toJSON lib.types.str)
              ]
            );
            options.N8N_RUNNERS_AUTH_TOKEN_FILE = lib.mkOption {
              type = lib.types.nullOr lib.types.path;
              default = null;
            };
          };
          default = { };
        };
        taskRunners.enable = lib.mkOption {
          type = lib.types.bool;
          default = false;
        };
      };
      # The default of NixOS, which the checker's list does not compute.
      config.nix.package = lib.mkOverride 1450 pkgs.nix;
    }
    # The assertion of NixOS's module for ZFS.
    (
      { config, ... }:
      {
        config.assertions = lib.mkIf (config.appliance.pool.enable or false) [
          {
            assertion = config.networking.hostId != null;
            message = "ZFS requires networking.hostId to be set";
          }
        ];
      }
    )
  ];
}
