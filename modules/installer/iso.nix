# The installer's ISO: carries the flake and the finished system, so that installing needs no network.
{ config, lib, pkgs, flakeSource, targetSystem, diskoInstall, ... }:
let
  cfg = config.appliance.installer;
  inherit (lib) mkOption types;
  script = pkgs.writeShellApplication {
    name = "appliance-install";
    runtimeInputs = [ pkgs.coreutils pkgs.gawk pkgs.gnugrep pkgs.openssh pkgs.util-linux diskoInstall ];
    text = builtins.readFile ./install.sh;
  };
in
{
  options.appliance.installer = {
    host = mkOption { type = types.str; default = "gpu"; example = "gpu"; description = "Which host of the flake is installed."; };
    minimumRamGiB = mkOption { type = types.ints.positive; default = 60; example = 120; description = "Smallest RAM the installer accepts."; };
    minimumDiskGiB = mkOption { type = types.ints.positive; default = 400; example = 900; description = "Smallest disk the installer accepts."; };
    answerKeys = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExam admin@home" ];
      description = "SSH public keys whose signed answer file may stand for typing the disk's serial. None: somebody must type.";
    };
  };

  config = {
    environment.systemPackages = [ script ];
    environment.etc = {
      "appliance-installer/flake".source = flakeSource;
      "appliance-installer/allowed_signers".text = lib.concatMapStrings (key: "installer namespaces=\"appliance-install\" ${key}\n") cfg.answerKeys;
      "appliance-installer/limits".text = ''
        host=${cfg.host}
        minimum_ram_gib=${toString cfg.minimumRamGiB}
        minimum_disk_gib=${toString cfg.minimumDiskGiB}
      '';
    };
    # The whole system, so that disko-install copies instead of downloading.
    isoImage.storeContents = [ targetSystem ];
    isoImage.squashfsCompression = "zstd -Xcompression-level 6";
    boot.supportedFilesystems = [ "vfat" "ext4" ];
    services.getty.helpLine = "To install: appliance-install. It shows what it would erase and asks before it does.";
    nix.settings.experimental-features = [ "nix-command" "flakes" ];
  };
}
