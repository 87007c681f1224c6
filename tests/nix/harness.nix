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
