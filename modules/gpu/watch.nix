# The watchdog of the cards: `appliance gpu-watch serve`. It reads the kernel's log, nvidia-smi and the gateway's state.
# appliance/watch/gpu/decide.py decides. Unless `act` is set, it reports and changes nothing.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ../lib.nix { inherit lib; }) hardened;
  inherit (config) appliance;
  inherit (lib) mkOption types;
  cfg = appliance.gpuWatch;
  flag = enabled: text: lib.optionalString enabled " ${text}";
  arguments =
    "--config /etc/appliance/appliance.json --host ${appliance.host} --interval ${toString cfg.interval}"
    + flag cfg.act "--act"
    + flag (cfg.act && cfg.fans) "--fans"
    + flag (cfg.act && cfg.coldCycle) "--cold-cycle";
  indices = map (card: toString card.index) appliance.thisHost.gpus;
in
{
  options.appliance.gpuWatch = {
    enable = lib.mkEnableOption "the watchdog of the cards: heat, errors of the driver, hung engines";
    act = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether to act. If true, the watchdog lowers power limits, drains replicas, restarts engines, and reboots the
        machine at most twice a day. If false, its messages contain the action that would have followed.
      '';
    };
    fans = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether to raise the fans of a hot card, if `act` is set. The firmware of some workstation cards keeps the fans
        slow at 90 °C. The driver's own control returns when the card is cool, and when the watchdog ends.
      '';
    };
    coldCycle = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether to power the machine off for some minutes if two reboots did not bring a card back, if `act` is set. The
        alarm of the machine's clock powers it on again. Test it once on site: `systemctl start appliance-cold-cycle`.
      '';
    };
    interval = mkOption {
      type = types.ints.between 1 60;
      default = 3;
      example = 10;
      description = "Seconds between two looks at the cards. The kernel's log is read at once.";
    };
  };

  config = lib.mkIf (cfg.enable && !appliance.trial.isRescue) {
    assertions = [
      {
        assertion = appliance.gpu.enable;
        message = "appliance.gpuWatch.enable without appliance.gpu.enable: there is no driver to watch; enable it, or disable the watchdog on this host.";
      }
      {
        assertion = (cfg.fans || cfg.coldCycle) -> cfg.act;
        message = "appliance.gpuWatch.${
          if cfg.fans then "fans" else "coldCycle"
        } has no effect without appliance.gpuWatch.act: set act = true, or remove it.";
      }
    ];

    # A reboot with a dead card may never end; systemd does not arm this watchdog for a power off:
    # https://github.com/NVIDIA/open-gpu-kernel-modules/issues/1239
    systemd.settings.Manager.RebootWatchdogSec = lib.mkDefault "2min";

    systemd.services = {
      appliance-gpu-watch = {
        description = "Watchdog of the cards";
        wantedBy = [ "multi-user.target" ];
        after = [
          "nvidia-persistenced.service"
          "appliance-gpu-power.service"
        ];
        restartTriggers = [ appliance.configFile ];
        path = [
          config.hardware.nvidia.package
          pkgs.systemd
        ];
        # It has to watch a machine on which nothing else works.
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig = hardened // {
          Type = "notify";
          ExecStart = "${lib.getExe appliance.package} gpu-watch serve ${arguments}";
          # After a crash, the fans would stay at the speed that the watchdog had set.
          ExecStopPost = lib.mkIf (cfg.act && cfg.fans) (
            map (index: "-${lib.getExe appliance.package} gpu-watch fans ${index} auto") indices
          );
          Restart = "always";
          RestartSec = 5;
          WatchdogSec = 60;
          # A child that hangs inside the driver ends with the machine only.
          TimeoutStopSec = 20;
          StateDirectory = "appliance-gpu-watch";
          StateDirectoryMode = "0700";
          # Its own files, and those that it shares with other agents: metrics, and wishes for power limits.
          RuntimeDirectory = [
            "appliance-gpu-watch"
            "appliance-metrics"
            "appliance-card-power"
          ];
          # The mark in the kernel's log stays over restarts of the watchdog.
          RuntimeDirectoryPreserve = true;
          RuntimeDirectoryMode = "0755";
          # Absent on a machine that sends no messages.
          ReadWritePaths = [ "-/var/lib/appliance-notices" ];
          # The gateway's control socket belongs to its user, with mode 0600, and so does its folder.
          # CAP_SYSLOG reads the kernel's log. The driver requires CAP_SYS_ADMIN for limits and fans.
          CapabilityBoundingSet = "CAP_DAC_OVERRIDE CAP_SYSLOG CAP_SYS_ADMIN";
          # Capabilities count in the first user namespace, and systemd accepts requests from root.
          PrivateUsers = false;
          ProtectKernelLogs = false;
          PrivateDevices = false;
          DeviceAllow = [
            "char-nvidia rw"
            "/dev/kmsg r"
          ];
          # nvidia-smi reads /proc/driver/nvidia; the watchdog reads the identity of the boot.
          ProcSubset = "all";
        };
      };
    }
    // lib.optionalAttrs (cfg.act && cfg.coldCycle) {
      appliance-cold-cycle = {
        description = "Power off, and on again by the alarm of the machine's clock";
        path = [ pkgs.systemd ];
        serviceConfig = hardened // {
          Type = "oneshot";
          ExecStart = [
            # Long enough for the slowest shutdown: an alarm before its end would be lost, and the machine stay off.
            "${lib.getExe' pkgs.util-linux "rtcwake"} --mode no --seconds 900"
            "${lib.getExe' pkgs.systemd "systemctl"} poweroff --no-block"
          ];
          # systemd accepts the request from root.
          PrivateUsers = false;
          # It sets the alarm of the machine's clock.
          PrivateDevices = false;
          ProtectClock = false;
          DeviceAllow = "char-rtc rw";
        };
      };
    };
  };
}
