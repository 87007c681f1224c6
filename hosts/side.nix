# The side box: an AMD card by Vulkan with embeddings and speech to text, and n8n. Change the values; docs/side-box.md
# shows the other half, the engines of kind http on the GPU server.
{
  imports = [
    ../modules/roles/side.nix
    ../modules/installer/disk.nix
  ];

  networking.hostName = "side";
  system.stateVersion = "26.05";
  boot.loader.systemd-boot.enable = true;

  appliance = {
    disk.device = "/dev/disk/by-id/nvme-EXAMPLE_SIDE_SERIAL";
    network.ssh.keys = [
      "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExam you@example"
    ];
    network.wireguard = {
      address = "10.77.0.3";
      # In the home network; the GPU server calls first.
      listenPort = 51820;
      peers.gpu = {
        publicKey = "ZXhhbXBsZS1ncHUtcHVibGljLWtleS0wMDAwMDAwMDA=";
        address = "10.77.0.1";
      };
    };
    whisper = {
      enable = true;
      model = "/var/lib/appliance-models/hub/models--ggerganov--whisper.cpp/snapshots/5359861c739e955e79d9a303bcbc70fb988958b1/ggml-large-v3-turbo.bin";
    };
    n8n = {
      enable = true;
      encryptionKeyFile = "/run/secrets/n8n-encryption-key";
      runnersTokenFile = "/run/secrets/n8n-runners-token";
    };
    settings = {
      hosts.side = {
        memory_gib = 32;
        gpus = [
          {
            index = 0;
            model = "Radeon RX 9070 XT";
            memory_mib = 16304;
          }
        ];
      };
      models = {
        qwen3-embedding-8b = {
          # 7.5 GiB; bf16 would need 14 GiB and leave no room for whisper on this card.
          source = "/var/lib/appliance-models/gguf/Qwen3-Embedding-8B-Q8_0.gguf";
          task = "embed";
          recipe = "qwen3-embedding";
          weights_gib = 7.5;
          max_context = 32768;
        };
        whisper = {
          source = "/var/lib/appliance-models/hub/models--ggerganov--whisper.cpp/snapshots/5359861c739e955e79d9a303bcbc70fb988958b1/ggml-large-v3-turbo.bin";
          task = "transcribe";
        };
      };
      engines = {
        embeddings = {
          kind = "llamacpp";
          device = "vulkan";
          host = "side";
          model = "qwen3-embedding-8b";
          gpus = [ 0 ];
          # The rest of the card is for whisper.
          gpu_memory_utilization = 0.7;
          context = 8192;
          concurrency = 4;
          port = 8111;
        };
        speech = {
          kind = "http";
          device = "cpu";
          host = "side";
          model = "whisper";
          address = "127.0.0.1";
          port = 8112;
          health_path = "/health";
          context = 448;
          concurrency = 1;
        };
      };
      gateway.host = "10.77.0.3";
    };
  };
}
