# Your VPS. The provider defines its disk and boot loader: copy them from its own hardware-configuration.nix.
{
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
      # `wg show wg0 public-key` on the GPU server
      peers.gpu = {
        publicKey = "ZXhhbXBsZS1ncHUtcHVibGljLWtleS0wMDAwMDAwMDA=";
        address = "10.77.0.1";
      };
    };
    edge = {
      domain = "llm.example.org";
      acmeEmail = "you@example.org";
    };
  };
}
