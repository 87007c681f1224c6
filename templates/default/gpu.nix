# Your GPU server. Every option: docs/options.md of the appliance.
{
  networking.hostName = "gpu";
  system.stateVersion = "26.05";
  boot.loader.systemd-boot.enable = true;

  appliance = {
    disk.device = "/dev/disk/by-id/nvme-EXAMPLE_SERIAL"; # ls -l /dev/disk/by-id
    network.ssh.keys = [
      "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExam you@example"
    ];
    network.wireguard = {
      address = "10.77.0.1";
      # `wg show wg0 public-key` on the VPS
      peers.vps = {
        publicKey = "ZXhhbXBsZS12cHMtcHVibGljLWtleS0wMDAwMDAwMDA=";
        address = "10.77.0.2";
        endpoint = "203.0.113.5:51820";
      };
    };
    settings = {
      hosts.gpu = {
        memory_gib = 128;
        gpus = [
          {
            index = 0;
            model = "RTX PRO 6000 Blackwell Workstation";
            memory_mib = 97887;
          }
        ];
      };
      models.qwen3-30b = {
        source = "Qwen/Qwen3-30B-A3B";
        revision = "ad44e777bcd18fa416d9da3bd8f70d33ebb85d39";
        weights_gib = 56.9;
        max_context = 40960;
      };
      engines.chat = {
        host = "gpu";
        model = "qwen3-30b";
        gpus = [ 0 ];
        context = 32768;
        concurrency = 64;
        port = 8101;
      };
      gateway.host = "10.77.0.1";
    };
  };
}
