# On top of hosts/gpu.nix: the second host of an engine over two hosts, with a program of the test in place of vLLM.
{ lib, ... }:
let
  host = address: {
    link = {
      inherit address;
      interface = "lan0";
    };
  };
in
{
  appliance = {
    host = "gpu2";
    gateway.enable = false;
    smoke.enable = false;
    observe.enable = false;
    settings = {
      hosts.gpu = host "10.88.0.1";
      hosts.gpu2 = host "10.88.0.2" // {
        memory_gib = 128;
        gpus =
          map
            (index: {
              inherit index;
              model = "RTX PRO 6000 Blackwell Workstation";
              memory_mib = 97887;
            })
            [
              0
              1
            ];
      };
      engines.agents = {
        replicas = lib.mkForce 1;
        nodes = [
          "gpu"
          "gpu2"
        ];
        tensor_parallel = 2;
        pipeline_parallel = 2;
        gpus = lib.mkForce [
          0
          1
          0
          1
        ];
        command = "/opt/vllm/bin/python";
      };
    };
  };
}
