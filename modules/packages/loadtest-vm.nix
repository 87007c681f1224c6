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
    gpu.succeed("loadtest --config /etc/appliance/appliance.json", timeout=900)
  '';
}
