# `nix develop`: the programs for work on the appliance, tests included.
{ pkgs }:
pkgs.mkShell {
  packages = with pkgs; [
    python313
    ruff
    gnumake
    shellcheck
    nixfmt
    nftables
    nginx
    wireguard-tools
    wireguard-go
    iproute2
  ];
}
