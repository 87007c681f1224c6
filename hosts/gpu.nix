# The GPU server: two cards, one agent model on each. Change the values; docs/options.md explains them.
{
  imports = [
    ../modules/roles/gpu.nix
    ../modules/installer/disk.nix
  ];

  networking.hostName = "gpu";
  system.stateVersion = "26.05";
  boot.loader.systemd-boot.enable = true;

  appliance = {
    disk.device = "/dev/disk/by-id/nvme-EXAMPLE_SERIAL";
    network.ssh.keys = [
      "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExam you@example"
    ];
    network.wireguard = {
      address = "10.77.0.1";
      peers.vps = {
        publicKey = "ZXhhbXBsZS12cHMtcHVibGljLWtleS0wMDAwMDAwMDA=";
        address = "10.77.0.2";
        endpoint = "203.0.113.5:51820";
      };
    };
    settings = {
      hosts.gpu = {
        memory_gib = 128;
        gpus =
          map
            (index: {
              inherit index;
              model = "RTX PRO 6000 Blackwell Workstation";
              memory_mib = 97887;
            })
            [
              0
              1
            ];
      };
      models.qwen3-30b = {
        source = "Qwen/Qwen3-30B-A3B";
        revision = "ad44e777bcd18fa416d9da3bd8f70d33ebb85d39";
        weights_gib = 56.9;
        max_context = 40960;
      };
      engines.agents = {
        host = "gpu";
        model = "qwen3-30b";
        gpus = [
          0
          1
        ];
        replicas = 2;
        context = 32768;
        concurrency = 64;
        port = 8101;
        options = {
          enable-auto-tool-choice = true;
          tool-call-parser = "hermes";
          reasoning-parser = "qwen3";
        };
      };
      gateway.host = "10.77.0.1";
      limits = {
        requests_per_minute = 120;
        requests_in_flight = 16;
      };
    };
  };
}
