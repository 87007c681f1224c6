# The ISO of the installer: it contains the flake and the finished system, so that an install needs no network.
{
  config,
  lib,
  pkgs,
  flakeSource,
  installClosure,
  diskoInstall,
  ...
}:
let
  cfg = config.appliance.installer;
  script = pkgs.writeShellApplication {
    name = "appliance-install";
    runtimeInputs = [
      pkgs.coreutils
      pkgs.e2fsprogs
      pkgs.gawk
      pkgs.gnugrep
      pkgs.gnused
      pkgs.openssh
      pkgs.util-linux
      diskoInstall
    ];
    text = builtins.readFile ./install.sh;
  };
in
{
  imports = [ ./options.nix ];

  config = {
    environment.systemPackages = [ script ];
    environment.etc = {
      "appliance-installer/flake".source = flakeSource;
      "appliance-installer/allowed_signers".text = lib.concatMapStrings (
        key: "installer namespaces=\"appliance-install\" ${key}\n"
      ) cfg.answerKeys;
      "appliance-installer/limits".text = ''
        host=${cfg.host}
        minimum_ram_gib=${toString cfg.minimumRamGiB}
        minimum_disk_gib=${toString cfg.minimumDiskGiB}
      '';
    };
    # The whole system, so that disko-install copies it instead of downloading.
    isoImage.storeContents = installClosure;
    isoImage.squashfsCompression = lib.mkDefault "zstd -Xcompression-level 6";
    boot.supportedFilesystems = [
      "vfat"
      "ext4"
    ];
    # The manual of NixOS, which the profile of installers adds (priority 60): one more evaluation for its options.
    documentation.nixos.enable = lib.mkOverride 55 false;
    services.getty.helpLine = "To install: sudo appliance-install. It shows what it would erase and requires a confirmation.";
    nix.settings.experimental-features = [
      "nix-command"
      "flakes"
    ];
  };
}
