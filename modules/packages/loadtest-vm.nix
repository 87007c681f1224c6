# `nix run .#loadtest` against the service in a virtual machine.
{ self, packages }:
{ ... }:
{
  name = "appliance-loadtest";
  nodes.gpu = {
    imports = [ (import ./vm-node.nix { inherit self; }) ];
    environment.systemPackages = [ packages.loadtest ];
  };
  testScript = ''
    gpu.wait_for_unit("appliance-gateway.service")
    gpu.wait_until_succeeds("curl -sf http://127.0.0.1:8101/health", timeout=60)
    key = gpu.succeed("appliance-keys create loadtest --expires-in 1h").strip()
    # The clock of a virtual machine is sometimes late; this test does not measure it.
    gpu.succeed(f"APPLIANCE_API_KEY={key} loadtest chat --duration 30s --client-lag-ms 5000", timeout=900)
  '';
}
