# The cards: open driver, persistence, and how they reach each other over PCIe.
{ config, lib, ... }:
let
  cfg = config.appliance.gpu;
  spanning = lib.attrNames (
    lib.filterAttrs (_: e: e.tensor_parallel > 1 && e.device == "cuda") config.appliance.myEngines
  );
in
{
  imports = [ ./power.nix ];

  options.appliance.gpu = {
    enable = lib.mkEnableOption "NVIDIA cards: open driver, persistence, power limits";
    peerToPeer = lib.mkOption {
      type = lib.types.nullOr (
        lib.types.enum [
          "driver"
          "iommu-off"
          "off"
        ]
      );
      default = null;
      example = "iommu-off";
      description = ''
        How cards reach each other's memory over PCIe; must be chosen once an engine spans cards.
        `driver`: leave IOMMU and kernel as they are (virtual machines; boards where it is known to work).
        `iommu-off`: no IOMMU and no HMM. The fastest; what hangs at the first all-reduce usually needs it.
        It also gives up the protection against DMA from a hostile device.
        `off`: through host memory. Slower, always works.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = spanning != [ ] -> cfg.peerToPeer != null;
        message = ''
          appliance.gpu.peerToPeer is not chosen, but ${lib.concatStringsSep ", " spanning} spans several cards:
          set it to "iommu-off" (fastest), "driver" (leave the kernel alone) or "off" (always works).
        '';
      }
    ];

    hardware.enableRedistributableFirmware = lib.mkDefault true;
    hardware.cpu.amd.updateMicrocode = lib.mkDefault true;
    hardware.cpu.intel.updateMicrocode = lib.mkDefault true;

    # The gate of NixOS's NVIDIA support, on a machine without a screen too.
    services.xserver.videoDrivers = [ "nvidia" ];
    hardware.graphics.enable = true;
    hardware.nvidia = {
      open = lib.mkDefault true;
      nvidiaPersistenced = true;
      # Nothing of a desktop belongs on a server.
      nvidiaSettings = lib.mkDefault false;
      modesetting.enable = lib.mkDefault false;
    };
    nixpkgs.config.allowUnfree = true;

    boot.kernelParams = lib.mkMerge [
      # Surprise link-downs under load: keep PCIe links awake.
      [
        "pcie_aspm=off"
        "pcie_port_pm=off"
      ]
      (lib.mkIf (cfg.peerToPeer == "iommu-off") [
        "amd_iommu=off"
        "intel_iommu=off"
      ])
    ];
    boot.extraModprobeConfig = lib.mkIf (
      cfg.peerToPeer == "iommu-off"
    ) "options nvidia_uvm uvm_disable_hmm=1";
  };
}
