# Boots a GPU host without a GPU: the fake engine in the real unit's sandbox, the real gateway, the real
# firewall, the smoke test. Only a machine with nixpkgs and KVM can run it.
{ self }:
{ pkgs, ... }:
{
  name = "appliance";
  nodes.gpu = {
    imports = [ self.nixosModules.default ];
    appliance = {
      base.enable = true;
      engines.enable = true;
      gateway.enable = true;
      smoke.enable = true;
      network.firewall.enable = true;
      settings = {
        hosts.gpu.memory_gib = 4;
        models.tiny = { source = "/var/lib/appliance-models/tiny"; };
        engines.fake = {
          kind = "fake";
          device = "cpu";
          host = "gpu";
          model = "tiny";
          context = 2048;
          concurrency = 8;
          port = 8101;
        };
      };
    };
    # The fake engine lives with the tests and is no part of the installed appliance.
    systemd.services.appliance-engine-fake.serviceConfig.ExecStart = pkgs.lib.mkForce
      "${pkgs.python313}/bin/python ${../../tests/fakes/vllm.py} --model tiny --port 8101 --context 2048 --task generate";
  };
  testScript = ''
    gpu.wait_for_unit("appliance-engine-fake.service")
    gpu.wait_for_unit("appliance-gateway.service")
    gpu.wait_for_open_port(8000)
    with subtest("the smoke test passes after boot"):
        gpu.wait_until_succeeds("systemctl is-active appliance-smoke.service", timeout=300)
    with subtest("no key, no answer"):
        status = gpu.succeed("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8000/v1/models")
        assert status == "401", status
    with subtest("engine-control paths are hidden"):
        for path in ["sleep", "pause", "invocations", "collective_rpc"]:
            status = gpu.succeed(f"curl -s -o /dev/null -w '%{{http_code}}' -X POST http://127.0.0.1:8000/{path}")
            assert status in ("401", "404"), (path, status)
    with subtest("a dead engine comes back"):
        gpu.succeed("systemctl kill -s KILL appliance-engine-fake.service")
        gpu.wait_until_succeeds("curl -sf http://127.0.0.1:8101/health", timeout=60)
    with subtest("nothing but the tunnel reaches the API"):
        gpu.succeed("nft list table inet appliance | grep -q 'policy drop'")
  '';
}
