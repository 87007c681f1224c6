# A test that boots a GPU host without a GPU. It runs the mock engine in the sandbox of the real unit, the real gateway,
# the real firewall and the smoke test. It needs nixpkgs and KVM.
{ self }:
{ ... }:
{
  name = "appliance";
  nodes.gpu = import ./vm-node.nix { inherit self; };
  testScript = ''
    gpu.wait_for_unit("appliance-engine-mock.service")
    gpu.wait_for_unit("appliance-gateway.service")
    gpu.wait_for_open_port(8000)
    with subtest("the smoke test passes after boot"):
        # A oneshot unit that has ended is inactive, whatever its result.
        show = "systemctl show --value --property"
        gpu.wait_until_succeeds(f'test "$({show} ExecMainExitTimestampMonotonic appliance-smoke.service)" != 0', timeout=300)
        result = gpu.succeed(f"{show} Result appliance-smoke.service").strip()
        assert result == "success", result
    with subtest("a request without a key is rejected"):
        status = gpu.succeed("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8000/v1/models")
        assert status == "401", status
    with subtest("engine-control paths are hidden"):
        for path in ["sleep", "pause", "invocations", "collective_rpc"]:
            status = gpu.succeed(f"curl -s -o /dev/null -w '%{{http_code}}' -X POST http://127.0.0.1:8000/{path}")
            assert status in ("401", "404"), (path, status)
    with subtest("a killed engine restarts"):
        gpu.succeed("systemctl kill -s KILL appliance-engine-mock.service")
        gpu.wait_until_succeeds("curl -sf http://127.0.0.1:8101/health", timeout=60)
    with subtest("the firewall drops by default"):
        gpu.succeed("nft list table inet appliance | grep -q 'policy drop'")
  '';
}
