# Power limits per card, set once the driver is up. The limit moves the SM clock only; memory keeps its speed.
{ config, lib, ... }:
let
  inherit (config.appliance) gpu thisHost;
  limited = lib.filter (card: card.power_limit_w != null) thisHost.gpus;
  range =
    model:
    if lib.hasInfix "Max-Q" model then
      {
        min = 250;
        max = 325;
        usual = 300;
      }
    else if lib.hasInfix "RTX PRO 6000" model && lib.hasInfix "Server" model then
      {
        min = 300;
        max = 600;
        usual = 450;
      }
    else if lib.hasInfix "RTX PRO 6000" model then
      {
        min = 150;
        max = 600;
        usual = 450;
      }
    else
      {
        min = 100;
        max = 1000;
        usual = 300;
      };
  refusal =
    card:
    let
      r = range card.model;
    in
    {
      assertion = card.power_limit_w >= r.min && card.power_limit_w <= r.max;
      message = ''
        appliance.settings.hosts.${config.appliance.host}.gpus: card ${toString card.index} (${card.model}) takes
        ${toString r.min} to ${toString r.max} W, not ${toString card.power_limit_w}: set power_limit_w = ${toString r.usual}.
      '';
    };
in
{
  config = lib.mkIf gpu.enable {
    assertions = map refusal limited;
    systemd.services.appliance-gpu-power = lib.mkIf (limited != [ ]) {
      description = "Power limits of the cards";
      wantedBy = [ "multi-user.target" ];
      after = [ "nvidia-persistenced.service" ];
      # Without persistence the driver would forget the limit with the last process.
      requires = [ "nvidia-persistenced.service" ];
      serviceConfig = config.appliance.lib.hardened // {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = map (
          card:
          "/run/current-system/sw/bin/nvidia-smi -i ${toString card.index} -pl ${toString card.power_limit_w}"
        ) limited;
        # Setting a limit is an administrator's call to the driver, through its device nodes.
        CapabilityBoundingSet = "CAP_SYS_ADMIN";
        PrivateUsers = false;
        PrivateDevices = false;
        DeviceAllow = [
          "char-nvidia-frontend rw"
          "char-nvidia rw"
          "/dev/nvidiactl rw"
        ];
        # nvidia-smi reads /proc/driver/nvidia.
        ProcSubset = "all";
      };
    };
  };
}
