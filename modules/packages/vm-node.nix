# A GPU host without a GPU, for tests in a virtual machine: the mock engine in the real unit's sandbox.
{ self }:
{ pkgs, ... }:
{
  imports = [ self.nixosModules.default ];
  # Nobody logs in; the test driver has its own door.
  users.allowNoPasswordLogin = true;
  appliance = {
    base.enable = true;
    engines.enable = true;
    gateway.enable = true;
    smoke.enable = true;
    network.firewall.enable = true;
    settings = {
      hosts.gpu.memory_gib = 4;
      models.tiny = {
        source = "/var/lib/appliance-models/tiny";
      };
      engines.fake = {
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
<<<<<<< HEAD
  # The fake engine lives with the tests and is no part of the installed appliance.
  systemd.services.appliance-engine-fake.serviceConfig.ExecStart = pkgs.lib.mkForce "${
    pkgs.python313.withPackages (ps: [
      ps.httptools
      ps.msgspec
      ps.uvloop
    ])
  }/bin/python ${../../tests/fakes/vllm.py} --model tiny --port 8101 --context 2048 --task generate";
=======
  # The mock engine lives with the tests and is no part of the installed appliance.
  systemd.services.appliance-engine-fake.serviceConfig.ExecStart = pkgs.lib.mkForce
    "${pkgs.python313.withPackages (ps: [ ps.httptools ps.msgspec ps.uvloop ])}/bin/python ${../../appliance/engines/mock.py} --model tiny --port 8101 --context 2048 --task generate";
>>>>>>> main
}
