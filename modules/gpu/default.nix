# The cards: open driver, persistence, and peer-to-peer access over PCIe.
{
  config,
  lib,
  options,
  ...
}:
let
  cfg = config.appliance.gpu;
  spanning = lib.attrNames (
    lib.filterAttrs (_: e: e.tensor_parallel > 1 && e.device == "cuda") config.appliance.myEngines
  );
in
{
  imports = [
    ./power.nix
    ./watch.nix
  ];

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
        How cards access each other's memory over PCIe; required if an engine spans cards.
        `driver`: keep IOMMU and kernel parameters (virtual machines; boards on which it works).
        `iommu-off`: no IOMMU and no HMM. The fastest choice, and the usual fix for a hang at the first all-reduce.
        It also removes the protection against DMA from a hostile device.
        `off`: through host memory. Slower, always works.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = spanning != [ ] -> cfg.peerToPeer != null;
        message = ''
          appliance.gpu.peerToPeer is not set, but ${lib.concatStringsSep ", " spanning} spans several cards:
          set it to "iommu-off" (fastest), "driver" (no kernel parameters) or "off" (always works).
        '';
      }
    ];

    hardware.enableRedistributableFirmware = lib.mkDefault true;
    hardware.cpu.amd.updateMicrocode = lib.mkDefault true;
    hardware.cpu.intel.updateMicrocode = lib.mkDefault true;

    # NixOS enables its NVIDIA support by this option, also on a machine without a screen.
    services.xserver.videoDrivers = [ "nvidia" ];
    hardware.graphics.enable = true;
    hardware.nvidia = {
      open = lib.mkDefault true;
      nvidiaPersistenced = true;
      # A server needs no desktop programs.
      nvidiaSettings = lib.mkDefault false;
      modesetting.enable = lib.mkDefault false;
    };
    # A flake that gives a `pkgs` of its own configures it itself; NixOS refuses both.
    nixpkgs.config = lib.mkIf (!options.nixpkgs.pkgs.isDefined) { allowUnfree = true; };

    boot.kernelParams = lib.mkMerge [
      # Without these, PCIe links that sleep may go down under load.
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
