# On top of hosts/gpu.nix, with the mock engine: every unit of ours that a GPU host can have.
{ lib, ... }:
let
  mock = options: {
    host = "gpu";
    kind = "mock";
    context = 4096;
    concurrency = 8;
    options = lib.mkForce { };
  }
  // options;
in
{
  appliance = {
    admin = {
      enable = true;
      tokenFile = "/run/secrets/admin-token";
    };
    models.lock = "/etc/models.lock";
    notify = {
      enable = true;
      tokenFile = "/run/secrets/telegram-token";
      chatId = "4242";
      # A test starts a server of that shape there.
      api = "http://127.0.0.1:8090";
    };
    trial.alertHook = "/usr/local/bin/alert";
    gpu.peerToPeer = "off";
    settings = {
      models = {
        qwen3-30b.weights_gib = lib.mkForce 8;
        rare.source = "/var/empty";
      };
      engines = {
        agents = {
          kind = "mock";
          context = lib.mkForce 4096;
          concurrency = lib.mkForce 8;
          gpu_memory_utilization = 0.4;
          options = lib.mkForce { };
        };
        pair = mock {
          model = "rare";
          gpus = [
            0
            1
          ];
          tensor_parallel = 2;
          gpu_memory_utilization = 0.5;
          residency = "on-demand";
          port = 8110;
        };
        embed = mock {
          model = "qwen3-30b";
          device = "cpu";
          port = 8120;
        };
      };
      smoke = {
        users = 2;
        requests_per_user = 2;
        max_tokens = 4;
        slo = {
          ttft_p99_ms = 60000;
          tpot_p99_ms = 20000;
          error_rate = 0.0;
        };
      };
    };
  };
}
