# The GPU host as the guest of tests/boot can be it: no card, no tunnel, the mock engine, a slow emulated CPU.
# Everything else of hosts/gpu.nix stays, above all its smoke test and its trial.
{ lib, ... }:
{
  appliance = {
    base.watchdogSec = 20;
    gpu.enable = lib.mkForce false;
    memory.enable = lib.mkForce false;
    models.enable = lib.mkForce false;
    network.wireguard.enable = lib.mkForce false;
    network.firewall.enable = lib.mkForce false;
    network.ssh.enable = lib.mkForce false;
    smoke = {
      enforce = true;
      timeoutSec = 200;
    };
    trial = {
      deadlineSec = 260;
      alertHook = "/usr/lib/guest/alert";
    };
    settings = {
      hosts.gpu = {
        memory_gib = lib.mkForce 8;
        gpus = lib.mkForce [ ];
      };
      models = lib.mkForce {
        fake = {
          source = "/var/empty";
        };
      };
      engines = lib.mkForce {
        agents = {
          kind = "mock";
          host = "gpu";
          model = "fake";
          device = "cpu";
          context = 4096;
          concurrency = 8;
          port = 8101;
          command = "/usr/bin/python3";
          start_timeout_s = 40;
        };
      };
      gateway.host = lib.mkForce "127.0.0.1";
      # An emulated CPU is some thirty times slower than a real one: what is proven here is the order of things.
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
