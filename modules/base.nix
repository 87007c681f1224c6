# Settings of both machines, except the boot loader: each host sets its own.
{ config, lib, ... }:
let
  cfg = config.appliance.base;
in
{
  options.appliance.base = {
    enable = lib.mkEnableOption "the settings of both machines: immutable users, watchdog, bounded journal";
    watchdogSec = lib.mkOption {
      type = lib.types.ints.positive;
      default = 60;
      example = 30;
      description = "Seconds after which the hardware watchdog resets a hung machine.";
    };
  };

  config = lib.mkIf cfg.enable {
    users.mutableUsers = lib.mkDefault false;
    # The manual of NixOS: every system would be evaluated once more for its list of options.
    documentation.nixos.enable = lib.mkDefault false;
    # A panic or a hang ends in a reboot: the machine has no operator on site.
    boot.kernel.sysctl."kernel.panic" = lib.mkDefault 10;
    systemd.settings.Manager.RuntimeWatchdogSec = lib.mkDefault "${toString cfg.watchdogSec}s";
    # An emergency shell would wait for a keyboard; without it the boot continues and SSH stays reachable.
    systemd.enableEmergencyMode = lib.mkDefault false;
    # The journal never contains prompts, but it must not fill the disk either.
    services.journald.extraConfig = lib.mkDefault "SystemMaxUse=2G";
    # The kernel side of a chained remote exploit against nginx (CVE-2026-123633); the appliance does not use SCTP.
    boot.blacklistedKernelModules = [ "sctp" ];
    nix.settings.experimental-features = [
      "nix-command"
      "flakes"
    ];
  };
}
