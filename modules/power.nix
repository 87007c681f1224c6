# The UPS of a host. NUT's upsmon is the safety net: at a low battery it shuts the host down, and the UPS then cuts the
# power. appliance/watch/power carries the host through a power cut before that: minimum watts, a paused gateway,
# stopped engines, and back without a reboot.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; }) cardAccess hardened;
  inherit (import ./gpu/cards.nix { inherit lib; }) power;
  inherit (config) appliance;
  inherit (appliance) thisHost;
  inherit (lib) mkForce mkOption types;
  cfg = appliance.power;
  nut = config.power.ups.package;
  name = "ups";
  port = 3493;
  password = "/run/appliance-nut/password";
  flag = "/run/killpower";
  environment = {
    NUT_CONFPATH = "/etc/nut";
    NUT_STATEPATH = "/var/lib/nut";
  };
  ups = thisHost.ups or null;
  cuda = appliance.gpu.enable && thisHost.gpus != [ ];

  # The drivers of NUT that accept these settings; another driver would not start with them.
  delaying = [
    "usbhid-ups"
    "nutdrv_qx"
    "blazer_usb"
    "blazer_ser"
    "tripplite_usb"
  ];
  delays = lib.elem cfg.ups.driver delaying;
  directives =
    cfg.ups.directives
    ++ lib.optional (cfg.ups.offDelaySec != null) "offdelay = ${toString cfg.ups.offDelaySec}"
    ++ lib.optional (cfg.ups.onDelaySec != null) "ondelay = ${toString cfg.ups.onDelaySec}"
    ++ lib.optionals (cfg.ups.lowChargePercent != null) [
      "ignorelb"
      "override.battery.charge.low = ${toString cfg.ups.lowChargePercent}"
    ];

  # The same rule as `_ups` of appliance/contract/rules.py, and the lowest limit that each card accepts.
  usable = ups.watts * 8 / 10;
  limit = card: if card.power_limit_w == null then 0 else card.power_limit_w;
  drawn = lib.foldl' (sum: card: sum + limit card) 0 thisHost.gpus;
  left = (usable - ups.host_watts) / lib.length thisHost.gpus;
  lowest = lib.foldl' (
    highest: card:
    let
      range = power card.model;
    in
    lib.max highest (if range == null then 0 else range.min)
  ) 0 thisHost.gpus;
  unlimited = lib.any (card: card.power_limit_w == null) thisHost.gpus;

  # upsmon shuts the host down. If it does not run, this unit does, with the flag that makes the UPS cut the power.
  powerOff = pkgs.writeShellScript "appliance-power-off" ''
    if ${nut}/sbin/upsmon -c fsd; then
      # The shutdown stops this unit.
      ${lib.getExe' pkgs.coreutils "sleep"} 45
    fi
    echo "upsmon did not shut this host down" >&2
    ${lib.getExe' pkgs.coreutils "touch"} ${flag}
    exec ${lib.getExe' pkgs.systemd "systemctl"} poweroff
  '';

  # Some models ignore the order to cut the power while mains is present, or mains returns meanwhile. A host that is
  # still alive then would stay off for good, because its firmware starts it only after a real cut.
  # https://github.com/networkupstools/nut/issues/3481, https://github.com/networkupstools/nut/issues/3229
  waitSec = 60 + (if cfg.ups.offDelaySec != null then cfg.ups.offDelaySec else 20);
  stillAlive = pkgs.writeShellScript "appliance-power-race" ''
    ${lib.getExe' pkgs.coreutils "sync"}
    echo "the UPS cuts the power; if it does not within ${toString waitSec} s, this host reboots" >&2
    ${lib.getExe' pkgs.coreutils "sleep"} ${toString waitSec}
    exec ${lib.getExe' pkgs.systemd "systemctl"} reboot --force --force
  '';

  agent = lib.concatStringsSep " " (
    [
      "${lib.getExe appliance.package} power serve --ups ${name} --port ${toString port}"
      "--metrics /run/appliance-metrics/power.prom"
      "--power-off ${lib.escapeShellArg "systemctl start --no-block appliance-power-off.service"}"
    ]
    ++ lib.optional (
      appliance.gateway.enable || appliance.engines.enable
    ) "--config /etc/appliance/appliance.json --host ${appliance.host}"
    ++ lib.optional appliance.gateway.enable "--gateway ${appliance.settings.gateway.data_dir}"
    ++ lib.optional (cfg.announceTo != null) "--announce ${cfg.announceTo}"
    ++ lib.mapAttrsToList (limit: value: "--set ${limit}=${toString value}") cfg.limits
  );
in
{
  options.appliance.power = {
    enable = lib.mkEnableOption "the UPS of this host: NUT, and the agent that carries the host through a power cut";
    ups = {
      driver = mkOption {
        type = types.str;
        default = "usbhid-ups";
        example = "nutdrv_qx";
        description = "Driver of NUT for the UPS; https://networkupstools.org/stable-hcl.html lists the models.";
      };
      port = mkOption {
        type = types.str;
        default = "auto";
        example = "/dev/ttyS0";
        description = "Port of the UPS; `auto` finds a USB device.";
      };
      directives = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "vendorid = 051D" ];
        description = "Further lines for the UPS in ups.conf.";
      };
      offDelaySec = mkOption {
        type = types.nullOr types.ints.positive;
        default = if delays then 20 else null;
        defaultText = lib.literalMD "20 if the driver accepts `offdelay`";
        example = 30;
        description = "Seconds between the order to cut the power and the cut.";
      };
      onDelaySec = mkOption {
        type = types.nullOr types.ints.positive;
        default = if delays then 60 else null;
        defaultText = lib.literalMD "60 if the driver accepts `ondelay`";
        example = 120;
        description = "Seconds from the return of mains until the UPS feeds the host again. More than `offDelaySec`.";
      };
      lowChargePercent = mkOption {
        type = types.nullOr (types.ints.between 1 99);
        default = null;
        example = 20;
        description = "Charge below which the battery is low, instead of the UPS's own signal. For a UPS that reports a low battery at a high charge.";
      };
    };
    announceTo = mkOption {
      type = types.nullOr (types.strMatching "https?://[^[:space:]]+");
      default = appliance.notify.deadman.url;
      defaultText = lib.literalExpression "config.appliance.notify.deadman.url";
      example = "http://10.77.0.2:9097";
      description = "The dead man's switch that a power cut is announced to, so that it raises no alarm.";
    };
    limits = mkOption {
      type = types.attrsOf types.numbers.nonnegative;
      default = { };
      example = {
        drain_s = 60;
      };
      description = "Limits of the agent that differ from its own; `appliance power serve --help` lists them.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = ups != null;
        message = "appliance.power.enable without appliance.settings.hosts.${appliance.host}.ups: describe the UPS, at least watts, its rated output.";
      }
      {
        assertion = ups == null || thisHost.gpus == [ ] || left >= lib.max 100 lowest;
        message = "appliance.settings.hosts.${appliance.host}.ups: 80 % of ${toString ups.watts} W less ${toString ups.host_watts} W for the host leave ${toString left} W for each of ${toString (lib.length thisHost.gpus)} cards, which accept ${toString (lib.max 100 lowest)} W or more: take a larger UPS.";
      }
      {
        assertion = ups == null || thisHost.gpus == [ ] || !unlimited;
        message = "appliance.settings.hosts.${appliance.host}.gpus: a card has no power_limit_w, so the load of the UPS is not known: set power_limit_w = ${toString left} or less.";
      }
      {
        assertion = ups == null || thisHost.gpus == [ ] || drawn + ups.host_watts <= usable;
        message = "appliance.settings.hosts.${appliance.host}.ups: ${toString drawn} W for the cards and ${toString ups.host_watts} W for the host exceed ${toString usable} W, 80 % of ${toString ups.watts} W. Set power_limit_w = ${toString left} or less for each card, or take a larger UPS.";
      }
      {
        assertion =
          cfg.ups.offDelaySec == null
          || cfg.ups.onDelaySec == null
          || cfg.ups.onDelaySec > cfg.ups.offDelaySec;
        message = "appliance.power.ups.onDelaySec must be more than offDelaySec: a UPS that returns earlier never cuts the power, and the host stays off.";
      }
      {
        assertion = delays || (cfg.ups.offDelaySec == null && cfg.ups.onDelaySec == null);
        message = "appliance.power.ups: the driver ${cfg.ups.driver} does not start with offdelay and ondelay: set offDelaySec and onDelaySec to null.";
      }
    ];

    power.ups = {
      enable = true;
      mode = "standalone";
      ups.${name} = {
        inherit (cfg.ups) driver port;
        inherit directives;
        description = "UPS of ${appliance.host}";
      };
      upsd.listen = [
        {
          address = "127.0.0.1";
          inherit port;
        }
      ];
      users.appliance = {
        passwordFile = password;
        upsmon = "primary";
      };
      upsmon = {
        monitor.${name} = {
          system = "${name}@127.0.0.1";
          user = "appliance";
          type = "primary";
        };
        settings = {
          POWERDOWNFLAG = flag;
          SHUTDOWNCMD = "${lib.getExe' pkgs.systemd "systemctl"} poweroff";
          POLLFREQ = 5;
          POLLFREQALERT = 2;
          # A UPS that is lost during a power cut counts as low after this time.
          DEADTIME = 20;
          FINALDELAY = 5;
          # A low battery that lasts for a moment only is a false one: https://github.com/networkupstools/nut/issues/3087
          OBLBDURATION = 10;
          # The host runs, so its UPS is not off: some models report that during a self-test.
          # https://github.com/networkupstools/nut/issues/2104
          OFFDURATION = -1;
        };
      };
    };

    systemd.tmpfiles.rules = [
      "d /run/appliance-metrics 0755 root root"
      "d /run/appliance-card-power 0755 root root"
    ];

    systemd.services = {
      # upsmon and upsd are on this host only, so no person needs to know the password between them.
      appliance-power-password = {
        description = "Password between upsmon and upsd";
        requiredBy = [
          "upsmon.service"
          "upsd.service"
        ];
        before = [
          "upsmon.service"
          "upsd.service"
        ];
        restartIfChanged = false;
        serviceConfig = hardened // {
          Type = "oneshot";
          RemainAfterExit = true;
          RuntimeDirectory = "appliance-nut";
          RuntimeDirectoryMode = "0700";
          RuntimeDirectoryPreserve = true;
          ExecStart = pkgs.writeShellScript "appliance-power-password" ''
            [ -s ${password} ] || ${lib.getExe' pkgs.coreutils "head"} -c 24 /dev/urandom | ${lib.getExe' pkgs.coreutils "base64"} > ${password}
          '';
        };
      };
      # NixOS starts the drivers once, and a UPS that is not found at that moment stays unknown
      # (https://github.com/NixOS/nixpkgs/issues/525205). A driver that ends is not restarted either.
      upsdrv = {
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig = {
          Type = mkForce "forking";
          RemainAfterExit = mkForce false;
          PIDFile = "/var/lib/nut/${cfg.ups.driver}-${name}.pid";
          Restart = "always";
          RestartSec = 10;
        };
      };
      upsd = {
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig = {
          Restart = "always";
          RestartSec = 5;
        };
      };
      upsmon = {
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig = {
          Restart = "always";
          RestartSec = 5;
        };
      };
      # The driver of this package changes its user to nutmon, which may not open the UPS, unless root is named.
      # https://github.com/NixOS/nixpkgs/issues/552701
      ups-killpower.serviceConfig.ExecStart = mkForce [
        "-${nut}/bin/upsdrvctl -u root shutdown"
        "${stillAlive}"
      ];

      appliance-power-off = {
        description = "Shutdown at the end of the battery";
        restartIfChanged = false;
        inherit environment;
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig = hardened // {
          Type = "oneshot";
          ExecStart = powerOff;
          # It signals upsmon, a process of another user.
          CapabilityBoundingSet = "CAP_KILL";
          # It writes the flag that makes the UPS cut the power, and systemd accepts the shutdown from root.
          ReadWritePaths = [ "/run" ];
          PrivateUsers = false;
        };
      };

      appliance-power = {
        description = "Power agent: carries this host through a power cut";
        wantedBy = [ "multi-user.target" ];
        after = [
          "upsd.service"
          "upsdrv.service"
          "appliance-gpu-power.service"
          "nvidia-persistenced.service"
          # The sender stops after it, with the last message.
          "appliance-notify.service"
        ];
        path = [ pkgs.systemd ] ++ lib.optional cuda config.hardware.nvidia.package;
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig =
          hardened
          // {
            Type = "notify";
            ExecStart = agent;
            Restart = "always";
            RestartSec = 2;
            WatchdogSec = 60;
            # The state that other agents read, and that its successor continues from.
            RuntimeDirectory = "appliance-power";
            RuntimeDirectoryMode = "0755";
            RuntimeDirectoryPreserve = true;
            UMask = "0022";
            StateDirectory = "appliance-power";
            StateDirectoryMode = "0700";
            # The limits of the cards, the metrics and the notices are shared with other agents.
            ReadWritePaths = [
              "/run/appliance-card-power"
              "/run/appliance-metrics"
              "-/var/lib/appliance-notices"
            ];
            # The gateway's folder and its control socket belong to the gateway's user. nvidia-smi needs CAP_SYS_ADMIN
            # to set a limit.
            CapabilityBoundingSet = [ "CAP_DAC_OVERRIDE" ] ++ lib.optional cuda "CAP_SYS_ADMIN";
            # systemd accepts orders from root.
            PrivateUsers = false;
            # nvidia-smi reads /proc/driver/nvidia; the agent compares boots by their id.
            ProcSubset = "all";
            # upsd, engines on loopback, and the dead man's switch in the tunnel.
            RestrictAddressFamilies = [
              "AF_UNIX"
              "AF_INET"
              "AF_INET6"
            ];
            IPAddressAllow = [
              "localhost"
            ]
            ++ lib.optionals (cfg.announceTo != null) (
              lib.mapAttrsToList (_: peer: peer.address) appliance.network.wireguard.peers
            );
          }
          # It sets the power limits of the cards.
          // lib.optionalAttrs cuda cardAccess;
      };
    };
  };
}
