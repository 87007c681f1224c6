# On top of hosts/gpu.nix: the guest of tests/boot has no card, no tunnel, the mock engine and a slow emulated CPU.
# Everything else stays, above all the smoke test and the trial.
{ lib, ... }:
{
  # The tester's shell needs no login; without SSH, NixOS requires a password for root.
  users.allowNoPasswordLogin = true;
  # The watchdog of the cards sets 2 min, which is longer than most hangs of a shutdown without a card.
  systemd.settings.Manager.RebootWatchdogSec = "20s";
  appliance = {
    base.watchdogSec = 20;
    gpu.enable = lib.mkForce false;
    memory.enable = lib.mkForce false;
    # Its start loads more programs than an emulated CPU runs in the time of a boot; no trial depends on it.
    assistant.enable = lib.mkForce false;
    models.enable = lib.mkForce false;
    # It only observes, and its services are Go programs that an emulated CPU starts for minutes.
    observe.enable = lib.mkForce false;
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
      # An emulated CPU is some thirty times slower than a real one: these tests check the order of events, not speed.
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
