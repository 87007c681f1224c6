# A new generation is tried, not trusted: it boots once through the loader's one-shot entry, and only a passed
# smoke test makes it the default. The decisions are appliance/upgrade/decide.py's; here stands who calls them when.
# Until `appliance.smoke.enforce` is set nothing is done to the loader or the machine; it is only said.
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
  flags = "--boot ${esp} --rescue rescue${lib.optionalString smoke.enforce " --enforce"}";
  tools = [
    pkgs.systemd
    config.nix.package
    pkgs.coreutils
  ];

  # Root, for it sets EFI variables and profiles, and asks systemd for a reboot or a switch; no more than that.
  unit = description: arguments: {
    inherit description;
    path = tools;
    # Never stopped by the switch that it may itself have asked for.
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
      # Who stands before the machine sees it too.
      StandardOutput = "journal+console";
      StateDirectory = "appliance/trial";
      StateDirectoryMode = "0700";
      # What was told since this boot, and what is shown at login.
      RuntimeDirectory = [
        "appliance-trial"
        "motd.d"
      ];
      RuntimeDirectoryPreserve = true;
      UMask = "0022";
      TimeoutStartSec = 900;
      # The loader's configuration and profiles are what it is there to change, and the EFI variables, which
      # lie in /sys and bear the immutable flag.
      ReadWritePaths = [
        esp
        "-/nix/var/nix"
        "-/sys/firmware/efi/efivars"
      ];
      ProtectKernelTunables = false;
      # The second: the report lies in a folder of the gateway's user alone.
      CapabilityBoundingSet = "CAP_LINUX_IMMUTABLE CAP_DAC_READ_SEARCH";
      # systemd is asked for a reboot as root, and root owns what is written.
      PrivateUsers = false;
      # bootctl reads the partition table before it believes that the boot partition is one.
      PrivateDevices = false;
      DeviceAllow = "block-* r";
      SystemCallFilter = [ "@system-service" ];
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
        Whether a verdict is acted on. Set, a new generation boots once on trial and becomes the default only
        when its smoke test passes; one that fails, hangs, panics or loses power is left for the proven one.
        Unset, the verdict is only reported.
      '';
    };
    trial = {
      enable = mkOption {
        type = types.bool;
        default = smoke.enable;
        defaultText = lib.literalExpression "config.appliance.smoke.enable";
        example = false;
        description = "The record of which generation is proven, and what follows from a smoke test.";
      };
      rescue = mkOption {
        type = types.bool;
        default = cfg.enable && config.boot.loader.systemd-boot.enable;
        defaultText = lib.literalMD "where the trial record is kept and systemd-boot boots";
        example = false;
        description = "A boot entry that stands last: SSH and the tunnel, no cards, no engines. A first install that hangs ends there.";
      };
      deadlineSec = mkOption {
        type = types.ints.positive;
        default = smoke.timeoutSec + 300;
        defaultText = lib.literalExpression "config.appliance.smoke.timeoutSec + 300";
        example = 1800;
        description = "Seconds after boot by which the smoke test must have begun or given its verdict. One that runs by then has a limit of its own, `appliance.smoke.timeoutSec`.";
      };
      alertHook = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = lib.literalExpression ''pkgs.writeShellScript "alert" "exec curl -fsS --data-binary @- https://ntfy.example/appliance"'';
        description = "Program that gets each alert, one line, on its standard input; tried again until it exits 0.";
      };
      isRescue = mkOption {
        type = types.bool;
        default = false;
        internal = true;
        description = "Whether this is the rescue system itself.";
      };
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion =
          smoke.enforce
          -> config.boot.loader.systemd-boot.enable && config.boot.loader.efi.canTouchEfiVariables;
        message = "appliance.smoke.enforce needs systemd-boot and its EFI variables, for a trial is a one-shot boot entry: set boot.loader.systemd-boot.enable and boot.loader.efi.canTouchEfiVariables, or leave enforce off.";
      }
      {
        assertion = smoke.enforce -> smoke.enable;
        message = "appliance.smoke.enforce without appliance.smoke.enable: there would never be a verdict, and every upgrade would be rolled back; enable the smoke test.";
      }
      {
        assertion = smoke.enforce -> (config.systemd.settings.Manager.RuntimeWatchdogSec or "off") != "off";
        message = "appliance.smoke.enforce without a hardware watchdog: a hung trial would stay hung; set systemd.settings.Manager.RuntimeWatchdogSec (appliance.base does).";
      }
      {
        assertion = cfg.deadlineSec > smoke.timeoutSec;
        message = "appliance.trial.deadlineSec = ${toString cfg.deadlineSec} is not after appliance.smoke.timeoutSec = ${toString smoke.timeoutSec}: a smoke test that still runs would be taken for one that never started; raise it.";
      }
    ];

    # A panic before sysctl is read, and a first stage that cannot go on, become a reboot as well.
    boot.kernelParams = lib.mkIf smoke.enforce [
      "panic=10"
      "boot.panic_on_fail"
    ];
    boot.kernel.sysctl."kernel.panic_on_oops" = lib.mkIf smoke.enforce (lib.mkDefault 1);

    boot.loader.systemd-boot.extraInstallCommands = lib.mkIf config.boot.loader.systemd-boot.enable (
      lib.mkBefore ''
        # The builder's own end comes first: a boot partition that is full must not look installed.
        installed=$?
        [ "$installed" = 0 ] || exit "$installed"
        PATH=${lib.makeBinPath tools}:$PATH ${lib.getExe appliance.package} trial installed "$1" ${flags} ${
          if smoke.enforce then
            "|| exit"
          else
            ''|| echo "appliance: the trial record could not be told of $1" >&2''
        }
      ''
    );

    systemd.services = {
      appliance-trial-arrived =
        lib.recursiveUpdate (unit "Where the machine came up, or was switched to" "arrived ${flags}")
          {
            # Each boot and each switch starts it, as it starts the smoke test.
            wantedBy = [ "multi-user.target" ];
            after = [ "local-fs.target" ];
          };
    }
    // lib.optionalAttrs (!cfg.isRescue) {
      appliance-trial-passed = unit "The smoke test passed: what follows" "verdict passed ${flags}";
      appliance-trial-failed = unit "The smoke test failed: what follows" "verdict failed ${flags}";
      appliance-trial-deadline = unit "No verdict in time: what follows" "deadline ${flags}";
    }
    // lib.optionalAttrs (cfg.alertHook != null) {
      appliance-trial-alerts = {
        description = "Alerts that wait to be sent";
        after = [ "network-online.target" ];
        wants = [ "network-online.target" ];
        # A machine that has just come back may have no network for hours.
        startLimitIntervalSec = 0;
        serviceConfig = hardened // {
          Type = "oneshot";
          ExecStart = "${lib.getExe appliance.package} trial alerts --hook ${cfg.alertHook}";
          StateDirectory = "appliance/trial";
          StateDirectoryMode = "0700";
          Restart = "on-failure";
          RestartSec = 60;
          TimeoutStartSec = 300;
          # The hook speaks to whatever service its owner chose.
          RestrictAddressFamilies = [
            "AF_UNIX"
            "AF_INET"
            "AF_INET6"
          ];
          IPAddressDeny = "";
        };
      };
    };
    systemd.paths = lib.optionalAttrs (cfg.alertHook != null) {
      appliance-trial-alerts = {
        description = "Whether alerts wait";
        wantedBy = [ "multi-user.target" ];
        pathConfig.PathExists = "${record}/unsent";
      };
    };
    systemd.timers = lib.optionalAttrs (!cfg.isRescue) {
      appliance-trial-deadline = {
        description = "When there must have been a verdict";
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
          gpu.enable = lib.mkForce false;
          memory.enable = lib.mkForce false;
          models.enable = lib.mkForce false;
        };
        # Entries are sorted by this key first: it stands last.
        boot.loader.systemd-boot.sortKey = "zz-rescue";
        system.nixos.tags = [ "rescue" ];
      };
    };
  };
}
