# The side box: an engine by Vulkan, speech to text, n8n, and the GPU server's way to them.
{ lib }:
let
  service = name: c: c.systemd.services.${name}.serviceConfig;
  engine = service "appliance-engine-embeddings";
  whisper = service "appliance-whisper";
  n8n = c: c.services.n8n.environment;
in
{
  "the engine by Vulkan sees the render nodes, not the cards of NVIDIA" = {
    host = "side";
    gives = c: [
      (engine c).PrivateDevices
      (engine c).DeviceAllow
      (engine c).SupplementaryGroups
      c.hardware.graphics.enable
      (lib.hasInfix "llama" c.appliance.settings.engines.embeddings.command)
      (c.systemd.services.appliance-engine-embeddings.environment ? CUDA_HOME)
    ];
    is = [
      false
      [ "char-drm rw" ]
      [ "render" ]
      true
      true
      false
    ];
  };
  "an engine on a card of NVIDIA keeps its devices" = {
    host = "gpu";
    gives = c: [
      (lib.elem "char-drm rw" (service "appliance-engine-agents.0" c).DeviceAllow)
      c.hardware.graphics.enable
    ];
    is = [
      false
      true
    ];
  };
  "speech to text listens on loopback, detects the language and logs no file names" = {
    host = "side";
    gives =
      c:
      map (word: lib.hasInfix word (whisper c).ExecStart) [
        "--host 127.0.0.1 --port 8112"
        "--inference-path /v1/audio/transcriptions"
        "--language auto"
        "--convert"
      ]
      ++ [
        (whisper c).StandardOutput
        (whisper c).IPAddressAllow
        (whisper c).IPAddressDeny
      ];
    is = [
      true
      true
      true
      true
      "null"
      "localhost"
      "any"
    ];
  };
  "speech to text verifies its own file before a start, and no other model stops it" = {
    host = "side";
    module.appliance.models.lock = lib.mkForce /etc/hostname;
    gives = c: {
      requires = c.systemd.services.appliance-whisper.requires;
      wants = lib.elem "appliance-models-verify.service" c.systemd.services.appliance-whisper.wants;
      verifies = lib.hasSuffix "/ggml-large-v3-turbo.bin" (whisper c).ExecStartPre;
    };
    is = {
      requires = [ ];
      wants = true;
      verifies = true;
    };
  };
  "the gateway of the side box is reachable for the GPU server only" = {
    host = "side";
    gives = c: [
      (lib.hasInfix "ip saddr { 10.77.0.1 } tcp dport 8000 accept" c.networking.nftables.tables.appliance.content)
      (lib.hasInfix "5678" c.networking.nftables.tables.appliance.content)
      c.appliance.settings.gateway.host
    ];
    is = [
      true
      false
      "10.77.0.3"
    ];
  };
  "n8n has its keys before the first start, and listens on loopback" = {
    host = "side";
    gives = c: [
      (n8n c).N8N_LISTEN_ADDRESS
      (n8n c).N8N_RUNNERS_BROKER_LISTEN_ADDRESS
      (n8n c).N8N_ENCRYPTION_KEY_FILE
      (n8n c).N8N_RUNNERS_AUTH_TOKEN_FILE
      c.services.n8n.taskRunners.enable
      ((n8n c) ? WEBHOOK_URL)
    ];
    is = [
      "127.0.0.1"
      "127.0.0.1"
      "/run/secrets/n8n-encryption-key"
      "/run/secrets/n8n-runners-token"
      true
      false
    ];
  };
  "n8n behind a proxy" = {
    host = "side";
    module.appliance.n8n.publicUrl = "https://n8n.example.org";
    gives = c: [
      (n8n c).WEBHOOK_URL
      (n8n c).N8N_PROXY_HOPS
    ];
    is = [
      "https://n8n.example.org"
      "1"
    ];
  };
  "a backup has the database of n8n and its key" = {
    host = "side";
    module.appliance.backup = {
      enable = true;
      repositories.vps = {
        urlFile = "/run/secrets/backup-url";
        passwordFile = "/run/secrets/backup-password";
      };
      drill.enable = false;
    };
    gives =
      c:
      lib.filter (path: lib.hasInfix "n8n" path)
        (builtins.fromJSON (builtins.toJSON c.environment.etc."appliance/backup.json".source.value)).paths;
    is = [
      "/var/lib/private/n8n"
      "/run/secrets/n8n-encryption-key"
    ];
  };
  "the GPU server reaches the side box with a key of its own" = {
    host = "gpu";
    module = {
      appliance.network.wireguard.peers.side = {
        publicKey = "ZXhhbXBsZS1zaWRlLXB1YmxpYy1rZXktMDAwMDAwMDA=";
        address = "10.77.0.3";
        endpoint = "192.168.1.30:51820";
      };
      appliance.gateway.engineKeys.side-embeddings = "/run/secrets/side-key";
      appliance.settings = {
        models.qwen3-embedding-8b = {
          source = "/models/qwen3-embedding-8b";
          task = "embed";
        };
        engines.side-embeddings = {
          kind = "http";
          device = "cpu";
          host = "gpu";
          model = "qwen3-embedding-8b";
          address = "10.77.0.3";
          port = 8000;
          context = 8192;
          concurrency = 4;
        };
      };
    };
    gives = c: [
      (lib.elem "10.77.0.3" (service "appliance-gateway" c).IPAddressAllow)
      (lib.elem "engine-key-side-embeddings:/run/secrets/side-key"
        (service "appliance-gateway" c).LoadCredential
      )
      (c.systemd.services ? appliance-engine-side-embeddings)
    ];
    is = [
      true
      true
      false
    ];
  };

  "vLLM by Vulkan" = {
    host = "gpu";
    module.appliance.settings.engines.agents.device = lib.mkForce "vulkan";
    invalid = "vllm does not compute by Vulkan";
  };
  "a card by Vulkan that the side box lacks" = {
    host = "side";
    module.appliance.settings.engines.embeddings.gpus = lib.mkForce [ 1 ];
    refuses = "engines.embeddings: host side does not have one of its cards";
  };
  "speech to text without weights" = {
    host = "side";
    module.appliance.whisper.model = lib.mkForce null;
    refuses = "appliance.whisper.model is missing";
  };
  "speech to text that no engine of the site names" = {
    host = "side";
    module.appliance.whisper.port = 8119;
    refuses = "but no engine of this host has kind = \"http\"";
  };
  "n8n without the key of its credentials" = {
    host = "side";
    module.appliance.n8n.encryptionKeyFile = lib.mkForce null;
    refuses = "appliance.n8n.encryptionKeyFile is missing";
  };
  "n8n without the token of its runners" = {
    host = "side";
    module.appliance.n8n.runnersTokenFile = lib.mkForce null;
    refuses = "appliance.n8n.runnersTokenFile is missing";
  };
  "n8n on every address" = {
    host = "side";
    module.services.n8n.environment.N8N_LISTEN_ADDRESS = "0.0.0.0";
    refuses = "leave it at 127.0.0.1";
  };
  "the broker of the task runners on every address" = {
    host = "side";
    module.services.n8n.environment.N8N_RUNNERS_BROKER_LISTEN_ADDRESS = "0.0.0.0";
    refuses = "or the network reaches the broker of the task runners";
  };
  "a key of n8n in the store" = {
    host = "side";
    module.appliance.n8n.encryptionKeyFile = lib.mkForce /etc/hostname;
    errors = "absolute path outside the Nix store";
  };
}
