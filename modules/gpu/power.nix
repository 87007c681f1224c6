# Power limits per card, set after the driver starts. The limit lowers the SM clock only; memory keeps its speed.
{ config, lib, ... }:
let
  inherit (import ../lib.nix { inherit lib; }) hardened;
  inherit (import ./cards.nix { inherit lib; }) power;
  inherit (config.appliance) gpu thisHost;
  limited = lib.filter (card: card.power_limit_w != null) thisHost.gpus;
  refusal =
    card:
    let
      range = power card.model;
      advised = if range.recommended != null then range.recommended else range.tdp;
    in
    {
      assertion = range == null || card.power_limit_w >= range.min && card.power_limit_w <= range.max;
      message = ''
        appliance.settings.hosts.${config.appliance.host}.gpus: card ${toString card.index} (${card.model}) accepts
        ${toString range.min} to ${toString range.max} W, not ${toString card.power_limit_w}: set power_limit_w = ${toString advised}.
      '';
    };
  nvidiaSmi = lib.getExe' config.hardware.nvidia.package "nvidia-smi";
in
{
  config = lib.mkIf gpu.enable {
    assertions = map refusal limited;
    systemd.services.appliance-gpu-power = lib.mkIf (limited != [ ]) {
      description = "Power limits of the cards";
      wantedBy = [ "multi-user.target" ];
      after = [ "nvidia-persistenced.service" ];
      # Without persistence, the driver forgets the limit when the last process ends.
      requires = [ "nvidia-persistenced.service" ];
      serviceConfig = hardened // {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = map (
          card: "${nvidiaSmi} -i ${toString card.index} -pl ${toString card.power_limit_w}"
        ) limited;
        # nvidia-smi sets a limit through the device nodes of the driver, which requires CAP_SYS_ADMIN.
        CapabilityBoundingSet = "CAP_SYS_ADMIN";
        PrivateUsers = false;
        PrivateDevices = false;
        # Every card and nvidiactl: all have the number of this driver.
        DeviceAllow = "char-nvidia rw";
        # nvidia-smi reads /proc/driver/nvidia.
        ProcSubset = "all";
      };
    };
  };
}
