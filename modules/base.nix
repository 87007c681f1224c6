# What both machines are: systemd-boot or the provider's loader is the host's own affair, the rest is here.
{ config, lib, ... }:
let
  cfg = config.appliance.base;
in
{
  options.appliance.base = {
    enable = lib.mkEnableOption "what both machines share: immutable users, watchdog, bounded journal";
    watchdogSec = lib.mkOption {
      type = lib.types.ints.positive;
      default = 60;
      example = 30;
      description = "Seconds after which the hardware watchdog resets a hung machine.";
    };
  };

  config = lib.mkIf cfg.enable {
    users.mutableUsers = lib.mkDefault false;
    # A panic or a hang becomes a reboot: nobody stands beside the machine.
    boot.kernel.sysctl."kernel.panic" = lib.mkDefault 10;
    systemd.settings.Manager.RuntimeWatchdogSec = lib.mkDefault "${toString cfg.watchdogSec}s";
    # An emergency shell would wait for a keyboard; going on keeps SSH reachable.
    systemd.enableEmergencyMode = lib.mkDefault false;
    # Prompts never reach the journal, but it must not fill the disk either.
    services.journald.extraConfig = lib.mkDefault "SystemMaxUse=2G";
    # The kernel side of a chained remote exploit against nginx (facts: CVE-2026-123633); nothing here uses it.
    boot.blacklistedKernelModules = [ "sctp" ];
    nix.settings.experimental-features = [
      "nix-command"
      "flakes"
    ];
  };
}
