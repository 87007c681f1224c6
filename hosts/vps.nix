# The VPS: the public address. Change the values; docs/options.md explains them.
{ modulesPath, ... }:
{
  imports = [
    ../modules/roles/vps.nix
    (modulesPath + "/profiles/qemu-guest.nix")
  ];

  networking.hostName = "vps";
  system.stateVersion = "26.05";
  boot.loader.grub.device = "/dev/vda";
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };

  appliance.network = {
    ssh.keys = [
      "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExam you@example"
    ];
    wireguard = {
      address = "10.77.0.2";
      listenPort = 51820;
      peers.gpu = {
        publicKey = "ZXhhbXBsZS1ncHUtcHVibGljLWtleS0wMDAwMDAwMDA=";
        address = "10.77.0.1";
      };
    };
    edge = {
      domain = "llm.example.org";
      acmeEmail = "admin@example.org";
      gateways = [ "10.77.0.1" ];
    };
  };
}
