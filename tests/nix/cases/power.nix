# The UPS of a host: NUT, the agent, and a site whose cards fit it.
{ lib }:
let
  service = name: c: c.systemd.services.${name}.serviceConfig;
  # hosts/gpu.nix has two cards with 450 W each.
  withUps = more: {
    appliance = lib.recursiveUpdate {
      power.enable = true;
      settings.hosts.gpu.ups.watts = 1500;
    } more;
  };
in
{
  "a host without a UPS runs no NUT" = {
    host = "gpu";
    gives = c: {
      nut = c.power.ups.enable;
      agent = c.systemd.services ? appliance-power;
    };
    is = {
      nut = false;
      agent = false;
    };
  };
  "upsd listens on loopback only" = {
    host = "gpu";
    module = withUps { };
    gives = c: {
      inherit (c.power.ups) openFirewall;
      addresses = map (listen: listen.address) c.power.ups.upsd.listen;
    };
    is = {
      openFirewall = false;
      addresses = [ "127.0.0.1" ];
    };
  };
  "the power agent knows its host, its gateway and its UPS" = {
    host = "gpu";
    module = withUps { };
    gives =
      c:
      let
        command = (service "appliance-power" c).ExecStart;
      in
      map (part: lib.hasInfix part command) [
        "--ups ups --port 3493"
        "--config /etc/appliance/appliance.json --host gpu"
        "--gateway /var/lib/appliance-gateway"
        "--power-off 'systemctl start --no-block appliance-power-off.service'"
      ];
    is = [
      true
      true
      true
      true
    ];
  };
  "the limits of the power agent are its arguments" = {
    host = "gpu";
    module = withUps { power.limits.drain_s = 60; };
    gives = c: lib.hasSuffix "--set drain_s=60" (service "appliance-power" c).ExecStart;
    is = true;
  };
  "an outage is announced in the tunnel" = {
    host = "gpu";
    module = withUps { power.announceTo = "http://10.77.0.2:9097"; };
    gives = c: {
      announced = lib.hasInfix "--announce http://10.77.0.2:9097" (service "appliance-power" c).ExecStart;
      allowed = (service "appliance-power" c).IPAddressAllow;
    };
    is = {
      announced = true;
      allowed = [
        "localhost"
        "10.77.0.2"
      ];
    };
  };
  "an outage is announced to the switch that the messages name" = {
    host = "gpu";
    module = withUps { notify.deadman.url = "http://10.77.0.2:9097"; };
    gives = c: lib.hasInfix "--announce http://10.77.0.2:9097" (service "appliance-power" c).ExecStart;
    is = true;
  };
  "an outage announced to a switch without a scheme" = {
    host = "gpu";
    module = withUps { notify.deadman.url = "10.77.0.2:9097"; };
    forces = c: c.appliance.power.announceTo;
    errors = "is not of type";
  };
  "no unit of the UPS has a start limit" = {
    host = "gpu";
    module = withUps { };
    gives =
      c:
      lib.filter
        (
          name:
          let
            unit = c.systemd.services.${name};
          in
          toString (unit.unitConfig.StartLimitIntervalSec or unit.startLimitIntervalSec or "") != "0"
        )
        [
          "upsdrv"
          "upsd"
          "upsmon"
          "appliance-power"
          "appliance-power-off"
        ];
    is = [ ];
  };
  "a driver that ends is restarted" = {
    host = "gpu";
    module = withUps { };
    gives = c: {
      inherit (service "upsdrv" c) PIDFile Restart Type;
    };
    is = {
      PIDFile = "/var/lib/nut/usbhid-ups-ups.pid";
      Restart = "always";
      Type = "forking";
    };
  };
  "a host that the UPS does not cut reboots by itself" = {
    host = "gpu";
    module = withUps { };
    gives =
      c:
      let
        commands = (service "ups-killpower" c).ExecStart;
      in
      {
        first = lib.hasSuffix "/bin/upsdrvctl -u root shutdown" (lib.head commands);
        count = lib.length commands;
      };
    is = {
      first = true;
      count = 2;
    };
  };
  "only drivers with delays get them" = {
    host = "gpu";
    module = withUps { power.ups.driver = "dummy-ups"; };
    gives = c: lib.filter (lib.hasInfix "delay") c.power.ups.ups.ups.directives;
    is = [ ];
  };
  "a UPS with a false low battery gets a limit of its own" = {
    host = "gpu";
    module = withUps { power.ups.lowChargePercent = 20; };
    gives = c: lib.filter (line: line == "ignorelb" || lib.hasPrefix "override" line) c.power.ups.ups.ups.directives;
    is = [
      "ignorelb"
      "override.battery.charge.low = 20"
    ];
  };
  "a UPS without a description" = {
    host = "gpu";
    module.appliance.power.enable = true;
    refuses = "appliance.power.enable without appliance.settings.hosts.gpu.ups";
  };
  "two cards at 450 W on 900 W" = {
    host = "gpu";
    module = withUps { settings.hosts.gpu.ups.watts = 900; };
    refuses = "900 W for the cards and 250 W for the host exceed 720 W, 80 % of 900 W. Set power_limit_w = 235 or less";
  };
  "two cards that a UPS cannot carry at any limit" = {
    host = "gpu";
    module = withUps { settings.hosts.gpu.ups.watts = 600; };
    refuses = "leave 115 W for each of 2 cards, which accept 150 W or more: take a larger UPS";
  };
  "two cards at 235 W on 900 W" = {
    host = "gpu";
    module = {
      appliance.power.enable = true;
      appliance.settings.hosts.gpu = {
        ups.watts = 900;
        gpus = lib.mkForce (
          map
            (index: {
              inherit index;
              model = "RTX PRO 6000 Blackwell Workstation";
              memory_mib = 97887;
              power_limit_w = 235;
            })
            [
              0
              1
            ]
        );
      };
    };
    gives = c: c.systemd.services ? appliance-power;
    is = true;
  };
  "delays for a driver without them" = {
    host = "gpu";
    module = withUps {
      power.ups = {
        driver = "dummy-ups";
        offDelaySec = 20;
      };
    };
    refuses = "the driver dummy-ups does not start with offdelay and ondelay";
  };
  "a UPS that returns before it is off" = {
    host = "gpu";
    module = withUps { power.ups.onDelaySec = 10; };
    refuses = "appliance.power.ups.onDelaySec must be more than offDelaySec";
  };
  "a switch without an address" = {
    host = "gpu";
    module = withUps { power.announceTo = "10.77.0.2"; };
    forces = c: c.appliance.power.announceTo;
    errors = "is not of type";
  };
  "a low battery above the charge" = {
    host = "gpu";
    module = withUps { power.ups.lowChargePercent = 100; };
    forces = c: c.appliance.power.ups.lowChargePercent;
    errors = "is not of type";
  };
  "a limit of the power agent that is negative" = {
    host = "gpu";
    module = withUps { power.limits.drain_s = -1; };
    forces = c: c.appliance.power.limits.drain_s;
    errors = "is not of type";
  };
  "a card without a limit behind a UPS" = {
    host = "gpu";
    module = {
      appliance.power.enable = true;
      appliance.settings.hosts.gpu = {
        ups.watts = 1500;
        gpus = lib.mkForce (
          map
            (index: {
              inherit index;
              model = "RTX PRO 6000 Blackwell Workstation";
              memory_mib = 97887;
              power_limit_w = null;
            })
            [
              0
              1
            ]
        );
      };
    };
    refuses = "a card has no power_limit_w, so the load of the UPS is not known: set power_limit_w = 475 or less";
  };
  "a UPS without watts" = {
    host = "gpu";
    module.appliance = {
      power.enable = true;
      settings.hosts.gpu.ups.host_watts = 200;
    };
    errors = "ups.watts";
  };
  "a UPS with text for watts" = {
    host = "gpu";
    module = withUps { settings.hosts.gpu.ups.watts = "900"; };
    errors = "ups.watts";
  };
}
