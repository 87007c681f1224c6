# Power limits per card, set once the driver is up. The limit moves the SM clock only; memory keeps its speed.
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
        appliance.settings.hosts.${config.appliance.host}.gpus: card ${toString card.index} (${card.model}) takes
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
      # Without persistence the driver would forget the limit with the last process.
      requires = [ "nvidia-persistenced.service" ];
      serviceConfig = hardened // {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = map (
          card: "${nvidiaSmi} -i ${toString card.index} -pl ${toString card.power_limit_w}"
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
