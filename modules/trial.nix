# Trial boots: a new generation boots once through the loader's one-shot entry, and only a passed smoke test makes it the
# default. appliance/upgrade/decide.py decides; the units here call it. Unless `appliance.smoke.enforce` is set, they
# only report and change neither the loader nor the machine.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; }) hardened;
  inherit (config) appliance;
  cfg = appliance.trial;
  inherit (appliance) smoke;
  inherit (lib) mkOption types;
  record = "/var/lib/appliance/trial";
  esp = config.boot.loader.efi.efiSysMountPoint;
  outbox = "/var/lib/appliance-notices";
  hasHook = cfg.alertHook != null;
  sendsAlerts = hasHook || appliance.notify.enable;
  flags = "--boot ${esp} --rescue rescue${lib.optionalString smoke.enforce " --enforce"}";
  tools = [
    pkgs.systemd
    config.nix.package
    pkgs.coreutils
  ];

  # Root, because it sets EFI variables and profiles, and requests a reboot or a switch from systemd. No more than that.
  unit = description: arguments: {
    inherit description;
    path = tools;
    # As root, nix-env would open the store itself and remount it writable, which the sandbox forbids. The daemon does
    # it for this unit.
    environment.NIX_REMOTE = "daemon";
    # The switch that this unit may have requested must not stop it.
    restartIfChanged = false;
    stopIfChanged = false;
    unitConfig = {
      RequiresMountsFor = [
        esp
        record
      ];
      X-StopOnRemoval = false;
    };
    serviceConfig = hardened // {
      Type = "oneshot";
      ExecStart = "${lib.getExe appliance.package} trial ${arguments}";
      # Also shown on the machine's screen.
      StandardOutput = "journal+console";
      StateDirectory = "appliance/trial";
      StateDirectoryMode = "0700";
      # Alerts since this boot, and the text shown at login.
      RuntimeDirectory = [
        "appliance-trial"
        "motd.d"
      ];
      RuntimeDirectoryPreserve = true;
      UMask = "0022";
      TimeoutStartSec = 900;
      # It changes the loader's configuration, the profiles, and the EFI variables, which have the immutable flag.
      ReadWritePaths = [
        # A virtual machine of the tests has no boot partition.
        "-${esp}"
        "-/nix/var/nix"
        "-/sys/firmware/efi/efivars"
      ];
      # CAP_DAC_READ_SEARCH, because only the gateway's user may read the folder of the report.
      CapabilityBoundingSet = "CAP_LINUX_IMMUTABLE CAP_DAC_READ_SEARCH";
      # systemd accepts the reboot request from root, and root owns the written files.
      PrivateUsers = false;
      # bootctl reads the partition table to check the boot partition.
      PrivateDevices = false;
      DeviceAllow = "block-* r";
    };
  };
in
{
  options.appliance = {
    smoke.enforce = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether to act on a verdict. If true, a new generation boots once on trial and becomes the default only
        after its smoke test passes. After a failure, hang, panic or power loss, the known good generation boots.
        If false, the verdict is only reported.
      '';
    };
    trial = {
      enable = mkOption {
        type = types.bool;
        default = smoke.enable;
        defaultText = lib.literalExpression "config.appliance.smoke.enable";
        example = false;
        description = "Whether to record which generation is known good, and to act on the smoke test.";
      };
      rescue = mkOption {
        type = types.bool;
        default = cfg.enable && config.boot.loader.systemd-boot.enable;
        defaultText = lib.literalMD "true if the trial record is enabled and systemd-boot is the boot loader";
        example = false;
        description = "Whether to add a last boot entry with SSH and the tunnel, without cards and engines. After a hang of a first install, the machine boots it.";
      };
      deadlineSec = mkOption {
        type = types.ints.positive;
        default = smoke.timeoutSec + 300;
        defaultText = lib.literalExpression "config.appliance.smoke.timeoutSec + 300";
        example = 1800;
        description = "Seconds after boot by which the smoke test must have started or ended. A running test has its own limit, `appliance.smoke.timeoutSec`.";
      };
      alertHook = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = lib.literalExpression ''pkgs.writeShellScript "alert" "exec curl -fsS --data-binary @- https://ntfy.example/appliance"'';
        description = "Program that reads one alert, a line, from its standard input; retried until it exits with 0. Without one, `appliance.notify` sends the alerts if it is enabled.";
      };
      isRescue = mkOption {
        type = types.bool;
        default = false;
        internal = true;
        description = "Whether this system is the rescue system.";
      };
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion =
          smoke.enforce
          -> config.boot.loader.systemd-boot.enable && config.boot.loader.efi.canTouchEfiVariables;
        message = "appliance.smoke.enforce needs systemd-boot and EFI variables, because a trial is a one-shot boot entry: set boot.loader.systemd-boot.enable and boot.loader.efi.canTouchEfiVariables, or leave enforce off.";
      }
      {
        assertion = smoke.enforce -> smoke.enable;
        message = "appliance.smoke.enforce without appliance.smoke.enable: without a verdict, every upgrade would be rolled back; enable the smoke test.";
      }
      {
        assertion = smoke.enforce -> (config.systemd.settings.Manager.RuntimeWatchdogSec or "off") != "off";
        message = "appliance.smoke.enforce without a hardware watchdog: a hung trial would never reboot; set systemd.settings.Manager.RuntimeWatchdogSec (appliance.base does).";
      }
      {
        assertion = cfg.deadlineSec > smoke.timeoutSec;
        message = "appliance.trial.deadlineSec = ${toString cfg.deadlineSec} is not after appliance.smoke.timeoutSec = ${toString smoke.timeoutSec}: a running smoke test would count as one that never started; raise it.";
      }
    ];

    # A panic before sysctl is read, and a failure of the first stage, also end in a reboot.
    boot.kernelParams = lib.mkIf smoke.enforce [
      "panic=10"
      "boot.panic_on_fail"
    ];
    boot.kernel.sysctl."kernel.panic_on_oops" = lib.mkIf smoke.enforce (lib.mkDefault 1);

    boot.loader.systemd-boot.extraInstallCommands = lib.mkIf config.boot.loader.systemd-boot.enable (
      lib.mkBefore ''
        # Check the builder's exit code first: on a full boot partition, the generation must not count as installed.
        installed=$?
        [ "$installed" = 0 ] || exit "$installed"
        PATH=${lib.makeBinPath tools}:$PATH ${lib.getExe appliance.package} trial installed "$1" ${flags} ${
          if smoke.enforce then
            "|| exit"
          else
            ''|| echo "appliance: $1 could not be written to the trial record" >&2''
        }
      ''
    );

    systemd.services = {
      appliance-trial-arrived =
        lib.recursiveUpdate (unit "Record the generation after a boot or a switch" "arrived ${flags}")
          {
            # Each boot and each switch starts it, like the smoke test.
            wantedBy = [ "multi-user.target" ];
            after = [ "local-fs.target" ];
          };
    }
    // lib.optionalAttrs (!cfg.isRescue) {
      appliance-trial-passed = unit "Act on a passed smoke test" "verdict passed ${flags}";
      appliance-trial-failed = unit "Act on a failed smoke test" "verdict failed ${flags}";
      appliance-trial-deadline = unit "Act on a missing verdict" "deadline ${flags}";
    }
    // lib.optionalAttrs sendsAlerts {
      appliance-trial-alerts = {
        description = "Send the waiting alerts";
        after = lib.optional hasHook "network-online.target";
        wants = lib.optional hasHook "network-online.target";
        # After a reboot the machine may have no network for hours.
        startLimitIntervalSec = 0;
        serviceConfig = hardened // {
          Type = "oneshot";
          ExecStart = "${lib.getExe appliance.package} trial alerts ${
            if hasHook then "--hook ${cfg.alertHook}" else "--outbox ${outbox}"
          }";
          StateDirectory = "appliance/trial";
          StateDirectoryMode = "0700";
          Restart = "on-failure";
          RestartSec = 60;
          TimeoutStartSec = 300;
        }
        // (
          if hasHook then
            {
              # The hook connects to the service that its owner chose.
              RestrictAddressFamilies = [
                "AF_UNIX"
                "AF_INET"
                "AF_INET6"
              ];
              IPAddressDeny = "";
            }
          else
            {
              # appliance.notify sends what it puts there.
              ReadWritePaths = [ "-${outbox}" ];
            }
        );
      };
    };
    systemd.paths = lib.optionalAttrs sendsAlerts {
      appliance-trial-alerts = {
        description = "Watch for waiting alerts";
        wantedBy = [ "multi-user.target" ];
        pathConfig.PathExists = "${record}/unsent";
      };
    };
    systemd.timers = lib.optionalAttrs (!cfg.isRescue) {
      appliance-trial-deadline = {
        description = "Deadline of the verdict";
        wantedBy = [ "timers.target" ];
        timerConfig = {
          OnBootSec = cfg.deadlineSec;
          AccuracySec = "5s";
        };
      };
    };

    # Shown at login, on the console and over SSH.
    users.motdFile = lib.mkDefault "/run/motd.d/appliance";

    specialisation = lib.mkIf cfg.rescue {
      rescue.configuration = {
        appliance = {
          trial.isRescue = true;
          engines.enable = lib.mkForce false;
          gateway.enable = lib.mkForce false;
          admin.enable = lib.mkForce false;
          backup.enable = lib.mkForce false;
          gpu.enable = lib.mkForce false;
          gpuWatch.enable = lib.mkForce false;
          memory.enable = lib.mkForce false;
          models.enable = lib.mkForce false;
          observe.enable = lib.mkForce false;
        };
        # The loader sorts entries by this key first: the rescue entry is the last.
        boot.loader.systemd-boot.sortKey = "zz-rescue";
        system.nixos.tags = [ "rescue" ];
      };
    };
  };
}
