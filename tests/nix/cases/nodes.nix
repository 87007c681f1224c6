# An engine over two hosts: each renders its own rank, and opens its ports to the other one only.
{ lib }:
let
  site = {
    appliance.settings = {
      hosts = {
        gpu.link = {
          address = "10.88.0.1";
          interface = "lan0";
        };
        gpu2 = {
          memory_gib = 128;
          link = {
            address = "10.88.0.2";
            interface = "lan1";
          };
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
      };
    };
  };
  second = {
    imports = [ site ];
    appliance = {
      host = "gpu2";
      gateway.enable = false;
      smoke.enable = false;
      observe.enable = false;
    };
  };
  leader.imports = [
    site
    { appliance.gpu.peerToPeer = "off"; }
  ];
  rules = c: c.networking.nftables.tables.appliance.content;
  units = c: lib.filter (lib.hasPrefix "appliance-engine-") (lib.attrNames c.systemd.services);
in
{
  "the first host of an engine over two hosts" = {
    host = "gpu";
    module = leader;
    gives = c: {
      names = units c;
      exec = lib.hasInfix "engine exec agents --config" c.systemd.services.appliance-engine-agents.serviceConfig.ExecStart;
      reaches = c.systemd.services.appliance-engine-agents.serviceConfig.IPAddressAllow;
      rule = lib.hasInfix ''iifname "lan0" ip saddr { 10.88.0.2 } tcp dport { 29501, 29502, 32768-60999 } accept'' (
        rules c
      );
    };
    is = {
      names = [ "appliance-engine-agents" ];
      exec = true;
      reaches = [
        "localhost"
        "10.88.0.1"
        "10.88.0.2"
      ];
      rule = true;
    };
  };
  "the second host has its own rank, which waits for the first" = {
    host = "gpu";
    module = second;
    gives =
      c:
      let
        unit = c.systemd.services."appliance-engine-agents.rank1";
      in
      {
        names = units c;
        exec = lib.hasInfix "engine exec agents --rank 1 --config" unit.serviceConfig.ExecStart;
        limit = unit.unitConfig.StartLimitIntervalSec;
        inherit (unit.serviceConfig) Restart;
        inherit (unit) wantedBy requires;
        rule = lib.hasInfix ''iifname "lan1" ip saddr { 10.88.0.1 } tcp dport { 29501,'' (rules c);
        program =
          c.appliance.settings.engines.agents.command == "${c.appliance.engines.cudaEnvironment}/bin/python";
      };
    is = {
      names = [ "appliance-engine-agents.rank1" ];
      exec = true;
      limit = 0;
      Restart = "on-failure";
      wantedBy = [ "multi-user.target" ];
      requires = [ "nftables.service" ];
      rule = true;
      program = true;
    };
  };
  "a host without a rank opens no port for one" = {
    host = "gpu";
    gives = c: lib.hasInfix "29501" (rules c);
    is = false;
  };
  "a Ray node has no unit of ours, and the hosts reach the port of its head" = {
    host = "gpu";
    module = {
      imports = [ second ];
      appliance.settings.engines.agents = {
        distributed = "ray";
        command = "/opt/vllm-ray/bin/python";
      };
    };
    gives = c: {
      units = units c;
      rule = lib.hasInfix ''iifname "lan1" ip saddr { 10.88.0.1 } tcp dport { 6379, 32768-60999 } accept'' (rules c);
      master = lib.hasInfix "29501" (rules c);
    };
    is = {
      units = [ ];
      rule = true;
      master = false;
    };
  };
  "ranks without the firewall" = {
    host = "gpu";
    module.imports = [
      leader
      { appliance.network.firewall.enable = lib.mkForce false; }
    ];
    refuses = "engines.agents: its ranks accept commands without authentication";
  };
  "a gateway on a host that has ranks only" = {
    host = "gpu";
    module.imports = [
      second
      { appliance.gateway.enable = lib.mkForce true; }
    ];
    refuses = "has ranks of agents and serves no engine: set appliance.gateway.enable";
  };
  "a rank on a card that its host does not have" = {
    host = "gpu";
    module.imports = [
      second
      {
        appliance.settings.engines.agents.gpus = lib.mkOverride 10 [
          0
          1
          2
          3
        ];
      }
    ];
    refuses = "engines.agents: host gpu2 does not have one of its cards";
  };
  "an engine over a host that does not exist" = {
    host = "gpu";
    module.imports = [
      leader
      {
        appliance.assistant.enable = true;
        appliance.settings.engines.agents.nodes = lib.mkForce [
          "gpu"
          "gpu3"
        ];
      }
    ];
    invalid = "engines.agents.nodes: host 'gpu3' does not exist; did you mean";
  };
  "an engine over one host twice" = {
    host = "gpu";
    module.imports = [
      leader
      {
        appliance.assistant.enable = true;
        appliance.settings.engines.agents.nodes = lib.mkForce [
          "gpu"
          "gpu"
        ];
      }
    ];
    invalid = "engines.agents.nodes: names gpu twice";
  };
  "an engine over a host without a link" = {
    host = "gpu";
    module.imports = [
      leader
      { appliance.settings.hosts.gpu2.link = lib.mkForce null; }
    ];
    invalid = "hosts.gpu2.link: is missing, and engines.agents spans it";
  };
}
