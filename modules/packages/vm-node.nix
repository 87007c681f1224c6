# A GPU host without a GPU, for tests in a virtual machine: the mock engine in the sandbox of the real unit.
{ self }:
{ ... }:
{
  imports = [ self.nixosModules.default ];
  # The test driver does not log in.
  users.allowNoPasswordLogin = true;
  appliance = {
    base.enable = true;
    engines.enable = true;
    models.enable = true;
    gateway.enable = true;
    smoke.enable = true;
    network.firewall.enable = true;
    settings = {
      hosts.gpu.memory_gib = 4;
      models.tiny.source = "/var/lib/appliance-models/tiny";
      engines.mock = {
        kind = "mock";
        device = "cpu";
        host = "gpu";
        model = "tiny";
        context = 2048;
        concurrency = 8;
        port = 8101;
      };
    };
  };
}
