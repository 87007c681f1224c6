# What the installer is told: which host, on what hardware, and whose signature may answer for a person.
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
      description = "Which host of the flake is installed.";
    };
    minimumRamGiB = mkOption {
      type = types.ints.positive;
      default = 60;
      example = 120;
      description = "Smallest RAM the installer accepts.";
    };
    minimumDiskGiB = mkOption {
      type = types.ints.positive;
      default = 400;
      example = 900;
      description = "Smallest disk the installer accepts.";
    };
    answerKeys = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExam admin@home"
      ];
      description = "SSH public keys whose signed answer file may stand for typing the disk's serial. None: somebody must type.";
    };
  };
}
