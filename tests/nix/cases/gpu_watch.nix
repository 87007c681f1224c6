# The watchdog of the cards.
{ lib }:
let
  service = name: c: c.systemd.services.${name}.serviceConfig;
  # Without the program.
  arguments = line: lib.concatStringsSep " " (lib.tail (lib.splitString " " line));
  command = c: arguments (service "appliance-gpu-watch" c).ExecStart;
in
{
  "the watchdog reports only by default" = {
    host = "gpu";
    gives = command;
    is = "gpu-watch serve --config /etc/appliance/appliance.json --host gpu --interval 3";
  };
  "the watchdog acts with all its means" = {
    host = "gpu";
    module.appliance.gpuWatch = {
      act = true;
      fans = true;
      coldCycle = true;
      interval = 10;
    };
    gives = command;
    is = "gpu-watch serve --config /etc/appliance/appliance.json --host gpu --interval 10 --act --fans --cold-cycle";
  };
  "the fans return to the driver after a crash" = {
    host = "gpu";
    module.appliance.gpuWatch = {
      act = true;
      fans = true;
    };
    gives = c: map arguments (service "appliance-gpu-watch" c).ExecStopPost;
    is = [
      "gpu-watch fans 0 auto"
      "gpu-watch fans 1 auto"
    ];
  };
  "the watchdog starts again without a limit" = {
    host = "gpu";
    gives = c: {
      inherit (service "appliance-gpu-watch" c) Restart WatchdogSec;
      limit = c.systemd.services.appliance-gpu-watch.unitConfig.StartLimitIntervalSec;
    };
    is = {
      Restart = "always";
      WatchdogSec = 60;
      limit = 0;
    };
  };
  "a shutdown that hangs on a dead card is reset" = {
    host = "gpu";
    gives = c: c.systemd.settings.Manager.RebootWatchdogSec;
    is = "2min";
  };
  "only an armed cold cycle has a unit" = {
    host = "gpu";
    module.appliance.gpuWatch.act = true;
    gives = c: c.systemd.services ? appliance-cold-cycle;
    is = false;
  };
  "the alarm of the clock is set before the machine powers off" = {
    host = "gpu";
    module.appliance.gpuWatch = {
      act = true;
      coldCycle = true;
    };
    gives = c: map arguments (service "appliance-cold-cycle" c).ExecStart;
    is = [
      "--mode no --seconds 900"
      "poweroff --no-block"
    ];
  };
  "a host can disable the watchdog" = {
    host = "gpu";
    module.appliance.gpuWatch.enable = false;
    gives = c: c.systemd.services ? appliance-gpu-watch;
    is = false;
  };
  "a VPS has no watchdog of cards" = {
    host = "vps";
    gives = c: c.systemd.services ? appliance-gpu-watch;
    is = false;
  };
  "fans without act" = {
    host = "gpu";
    module.appliance.gpuWatch.fans = true;
    refuses = "appliance.gpuWatch.fans has no effect without appliance.gpuWatch.act: set act = true";
  };
  "a cold cycle without act" = {
    host = "gpu";
    module.appliance.gpuWatch.coldCycle = true;
    refuses = "appliance.gpuWatch.coldCycle has no effect without appliance.gpuWatch.act: set act = true";
  };
  "a watchdog without the driver" = {
    host = "gpu";
    module.appliance = {
      gpu.enable = lib.mkForce false;
      gpuWatch.enable = true;
    };
    refuses = "appliance.gpuWatch.enable without appliance.gpu.enable";
  };
  "an interval of a day" = {
    host = "gpu";
    module.appliance.gpuWatch.interval = 86400;
    errors = "interval";
    forces = command;
  };
  "an unknown option of the watchdog" = {
    host = "gpu";
    module.appliance.gpuWatch.armed = true;
    errors = "appliance.gpuWatch.armed";
  };
}
