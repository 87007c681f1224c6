# The partitions of the GPU server's disk, for disko-install and for the mounts of the running system.
{ config, lib, ... }:
let
  cfg = config.appliance.disk;
in
{
  options.appliance.disk = {
    device = lib.mkOption {
      type = lib.types.strMatching "/dev/disk/by-id/.+";
      example = "/dev/disk/by-id/nvme-Samsung_SSD_990_PRO_4TB_S7KGNJ0X123456";
      description = "The disk by its id: `ls -l /dev/disk/by-id`. A name such as /dev/nvme0n1 may mean another disk after the next boot.";
    };
    minimumGiB = lib.mkOption {
      type = lib.types.ints.positive;
      default = 400;
      example = 900;
      description = "Smallest disk in GiB that the installer accepts: weights, two generations with CUDA, chats.";
    };
  };

  # disko-install evaluates the host with the EFI variables on. Another value here would be another system, which the
  # ISO would have to build without a network.
  config.boot.loader.efi.canTouchEfiVariables = lib.mkDefault true;

  # Drivers that the first stage needs for any disk the appliance may be installed on.
  config.boot.initrd.availableKernelModules = [
    "nvme"
    "ahci"
    "xhci_pci"
    "usbhid"
    "usb_storage"
    "sd_mod"
  ];

  config.disko.devices.disk.main = {
    type = "disk";
    inherit (cfg) device;
    content = {
      type = "gpt";
      partitions = {
        ESP = {
          # Kernel and initrd of many generations: rollback is worth two gigabytes.
          size = lib.mkDefault "2G";
          type = "EF00";
          content = {
            type = "filesystem";
            format = "vfat";
            mountpoint = "/boot";
            mountOptions = [ "umask=0077" ];
          };
        };
        root = {
          size = "100%";
          content = {
            type = "filesystem";
            format = "ext4";
            mountpoint = "/";
            # install.sh renames it to appliance-root when the install is finished.
            extraArgs = [
              "-L"
              "appliance-new"
            ];
          };
        };
      };
    };
  };
}
