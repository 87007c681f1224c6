# Options of the installer: the host, the hardware it requires, and the keys that may sign an answer file.
{ lib, ... }:
let
  inherit (lib) mkOption types;
in
{
  options.appliance.installer = {
    host = mkOption {
      type = types.str;
      default = "gpu";
      example = "gpu";
      description = "The host of the flake to install.";
    };
    minimumRamGiB = mkOption {
      type = types.ints.positive;
      default = 60;
      example = 120;
      description = "Smallest RAM in GiB that the installer accepts.";
    };
    minimumDiskGiB = mkOption {
      type = types.ints.positive;
      default = 400;
      example = 900;
      description = "Smallest disk in GiB that the installer accepts.";
    };
    answerKeys = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExam admin@home"
      ];
      description = "SSH public keys. An answer file signed by one of them replaces typing the serial number of the disk. Without keys, an operator must type it.";
    };
  };
}
