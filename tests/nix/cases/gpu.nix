# Pins, cards, power, memory, NUMA.
{ lib }:
let
  card =
    more:
    {
      index = 0;
      model = "RTX PRO 6000 Blackwell Workstation";
      memory_mib = 97887;
    }
    // more;
  cards = list: { appliance.settings.hosts.gpu.gpus = lib.mkForce list; };
  twoNodes = [
    (card { numa_node = 0; })
    (card {
      index = 1;
      numa_node = 1;
    })
  ];
  engine = more: { appliance.settings.engines.agents = lib.mapAttrs (_: lib.mkForce) more; };
  # NixOS has an inhibitor of its own.
  ourInhibitors = c: removeAttrs c.system.switch.inhibitors [ "dbus-implementation" ];
in
{
  "driver below 580 with CUDA 13" = {
    host = "gpu";
    module.appliance.pins.driver = "575.57.08";
    refuses = "\"575.57.08\" cannot run CUDA 13.0, which needs 580 or newer";
  };
  "driver below 570 on Blackwell" = {
    host = "gpu";
    module.appliance.pins = {
      driver = "560.35.03";
      cuda = "12.5";
    };
    refuses = "\"560.35.03\" does not support Blackwell cards (sm_120), which need 570";
  };
  "closed kernel modules on Blackwell" = {
    host = "gpu";
    module.hardware.nvidia.open = false;
    refuses = "hardware.nvidia.open must be true";
  };
  "a vLLM pin that differs from the lock" = {
    host = "gpu";
    module.appliance.pins.vllm = "0.32.0";
    refuses = "modules/wheels.json has 0.33.0 and 2.14.0";
  };
  "a torch pin that differs from the lock" = {
    host = "gpu";
    module.appliance.pins.torch = "2.13.0";
    refuses = "appliance.pins has vllm 0.33.0 and torch 2.13.0";
  };
  "a CUDA pin that differs from the lock" = {
    host = "gpu";
    module.appliance.pins.cuda = "13.2";
    refuses = "the locked nvidia-cuda-runtime is 13.0";
  };
  "a Python pin that differs from the lock" = {
    host = "gpu";
    module.appliance.pins.python = "3.12";
    refuses = "was locked for another Python";
  };
  "the pinned driver is installed" = {
    host = "gpu";
    gives = c: c.hardware.nvidia.package.version;
    is = "595.71.05";
  };
  "a changed driver inhibits a live switch" = {
    host = "gpu";
    gives = ourInhibitors;
    is = {
      nvidia-driver = "595.71.05";
      cuda-major = "13";
      kernel-series = "6.18";
    };
  };
  "a VPS has no driver and no inhibitor" = {
    host = "vps";
    gives = ourInhibitors;
    is = { };
  };

  "Max-Q above its range" = {
    host = "gpu";
    module = {
      imports = [
        (cards [
          (card {
            model = "RTX PRO 6000 Blackwell Max-Q";
            power_limit_w = 450;
          })
        ])
        (engine {
          gpus = [ 0 ];
          replicas = 1;
        })
      ];
    };
    refuses = "accepts 250 to 325 W, not 450: set power_limit_w = 300";
  };
  "Server card below its range" = {
    host = "gpu";
    module = {
      imports = [
        (cards [
          (card {
            model = "RTX PRO 6000 Blackwell Server";
            power_limit_w = 200;
          })
        ])
        (engine {
          gpus = [ 0 ];
          replicas = 1;
        })
      ];
    };
    refuses = "accepts 300 to 600 W, not 200";
  };
  "Workstation card above 600 W" = {
    host = "gpu";
    module = cards [
      (card { power_limit_w = 650; })
      (card { index = 1; })
    ];
    refuses = "card 0 (RTX PRO 6000 Blackwell Workstation) accepts 150 to 600 W, not 650";
  };
  "a Max-Q gets 300 W by default" = {
    host = "gpu";
    module = cards [
      (card { model = "RTX PRO 6000 Blackwell Max-Q"; })
      (card { index = 1; })
    ];
    gives = c: map (g: g.power_limit_w) c.appliance.settings.hosts.gpu.gpus;
    is = [
      300
      450
    ];
  };
  "power limits are set per card" = {
    host = "gpu";
    gives = c: {
      arguments = map (
        command: lib.last (lib.splitString "/" command)
      ) c.systemd.services.appliance-gpu-power.serviceConfig.ExecStart;
      ofTheDriver = lib.all (lib.hasPrefix "${lib.getBin c.hardware.nvidia.package}/bin/") (
        c.systemd.services.appliance-gpu-power.serviceConfig.ExecStart
      );
    };
    is = {
      arguments = [
        "nvidia-smi -i 0 -pl 450"
        "nvidia-smi -i 1 -pl 450"
      ];
      ofTheDriver = true;
    };
  };
  "a card by the name that its driver prints" = {
    host = "gpu";
    module = cards [
      (card {
        model = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition";
        power_limit_w = 400;
      })
      (card { index = 1; })
    ];
    refuses = "Workstation Edition) accepts 250 to 325 W, not 400: set power_limit_w = 300";
  };
  "a card below the range in the catalogue" = {
    host = "gpu";
    module = cards [
      (card {
        model = "RTX 5090";
        power_limit_w = 200;
      })
      (card { index = 1; })
    ];
    refuses = "card 0 (RTX 5090) accepts 400 to 600 W, not 200: set power_limit_w = 575";
  };
  "a card that the catalogue lacks keeps its own limit" = {
    host = "gpu";
    module = cards [
      (card { model = "Example 1"; })
      (card {
        index = 1;
        model = "Example 2";
        power_limit_w = 150;
      })
    ];
    gives =
      c:
      map (
        command: lib.last (lib.splitString "/" command)
      ) c.systemd.services.appliance-gpu-power.serviceConfig.ExecStart;
    is = [ "nvidia-smi -i 1 -pl 150" ];
  };

  "tensor parallel without a choice of peer-to-peer" = {
    host = "gpu";
    module = engine {
      replicas = 1;
      tensor_parallel = 2;
    };
    refuses = "appliance.gpu.peerToPeer is not set, but agents spans several cards";
  };
  "peer-to-peer without IOMMU" = {
    host = "gpu";
    module.appliance.gpu.peerToPeer = "iommu-off";
    gives = c: [
      (lib.elem "amd_iommu=off" c.boot.kernelParams)
      (lib.hasInfix "options nvidia_uvm uvm_disable_hmm=1" c.boot.extraModprobeConfig)
    ];
    is = [
      true
      true
    ];
  };
  "the IOMMU stays on by default" = {
    host = "gpu";
    gives = c: lib.any (lib.hasInfix "iommu") c.boot.kernelParams;
    is = false;
  };
  "peer-to-peer off reaches NCCL" = {
    host = "gpu";
    module.appliance.gpu.peerToPeer = "off";
    gives = c: c.systemd.services."appliance-engine-agents.0".environment.NCCL_P2P_DISABLE;
    is = "1";
  };

  "80 % of RAM in huge pages" = {
    host = "gpu";
    module.appliance.memory.hugepages.reserveGiB = 102;
    refuses = "reserveGiB = 102 takes more than half of the 128 GiB of RAM";
  };
  "a small reservation" = {
    host = "gpu";
    module.appliance.memory.hugepages.reserveGiB = 16;
    gives = c: c.boot.kernel.sysctl."vm.nr_hugepages";
    is = 8192;
  };
  "no reservation by default" = {
    host = "gpu";
    gives = c: c.boot.kernel.sysctl ? "vm.nr_hugepages";
    is = false;
  };
  "transparent huge pages only by madvise" = {
    host = "gpu";
    gives = c: lib.elem "transparent_hugepage=madvise" c.boot.kernelParams;
    is = true;
  };
  "pinned buffers are not limited, and the kernel ends an engine before the gateway" = {
    host = "gpu";
    gives =
      c:
      let
        unit = c.systemd.services."appliance-engine-agents.0".serviceConfig;
      in
      [
        unit.LimitMEMLOCK
        (unit.OOMScoreAdjust > (c.systemd.services.appliance-gateway.serviceConfig.OOMScoreAdjust or 0))
      ];
    is = [
      "infinity"
      true
    ];
  };
  "a tmpfs store that takes most of the RAM" = {
    host = "gpu";
    module.appliance.models.store = {
      kind = "tmpfs";
      sizeGiB = 120;
    };
    refuses = "store.sizeGiB = 120 leaves too little of the 128 GiB of RAM";
  };
  "a tmpfs store larger than a third of the RAM" = {
    host = "gpu";
    module.appliance.models.store = {
      kind = "tmpfs";
      sizeGiB = 43;
    };
    refuses = "set at most 42, or store.kind";
  };
  "a tmpfs store that nothing fills" = {
    host = "gpu";
    module.appliance.models.store = {
      kind = "tmpfs";
      sizeGiB = 40;
    };
    refuses = "RAM is empty at boot";
  };
  "a tmpfs store that is filled from itself" = {
    host = "gpu";
    module.appliance.models = {
      lock = /etc/hostname;
      store = {
        kind = "tmpfs";
        sizeGiB = 40;
        warmFrom = "/var/lib/appliance-models";
      };
    };
    refuses = "RAM is empty at boot";
  };
  "a tmpfs store" = {
    host = "gpu";
    module.appliance.models = {
      lock = /etc/hostname;
      store = {
        kind = "tmpfs";
        path = "/run/models";
        sizeGiB = 40;
        warmFrom = "/var/lib/appliance-models";
      };
    };
    gives = c: [
      (lib.elem "size=40G" c.fileSystems."/run/models".options)
      (lib.hasInfix "--store /var/lib/appliance-models --to /run/models"
        c.systemd.services.appliance-models-warm.serviceConfig.ExecStart
      )
      (lib.elem "appliance-models-warm.service" c.systemd.services.appliance-models-verify.after)
    ];
    is = [
      true
      true
      true
    ];
  };
  "a store on XFS over RAID0" = {
    host = "gpu";
    module.appliance.models.store.kind = "raid0";
    gives =
      c:
      let
        mount = c.fileSystems."/var/lib/appliance-models";
      in
      [
        mount.fsType
        mount.device
        (lib.elem "nofail" mount.options)
        c.boot.swraid.enable
      ];
    is = [
      "xfs"
      "/dev/md/models"
      true
      true
    ];
  };
  "a store on a path that is not a device" = {
    host = "gpu";
    module.appliance.models.store = {
      kind = "raid0";
      device = "models";
    };
    forces = c: c.fileSystems;
    errors = "is not of type `string matching the pattern /dev/.+'";
  };

  "cards on one NUMA node are not pinned" = {
    host = "gpu";
    gives = c: [
      c.appliance.numa.pin
      (c.systemd.services."appliance-engine-agents.0".serviceConfig ? NUMAPolicy)
    ];
    is = [
      false
      false
    ];
  };
  "each replica is pinned to the node of its card" = {
    host = "gpu";
    module = cards twoNodes;
    gives =
      c:
      map (i: c.systemd.services."appliance-engine-agents.${i}".serviceConfig.NUMAMask) [
        "0"
        "1"
      ];
    is = [
      "0"
      "1"
    ];
  };
  "an engine across NUMA nodes" = {
    host = "gpu";
    module = {
      imports = [
        (cards twoNodes)
        (engine {
          replicas = 1;
          tensor_parallel = 2;
        })
      ];
      appliance.gpu.peerToPeer = "driver";
    };
    refuses = "engines.agents: cards on several NUMA nodes, which systemd cannot pin: set options.numa-bind = true";
  };
  "an engine across NUMA nodes that binds its own workers" = {
    host = "gpu";
    module = {
      imports = [
        (cards twoNodes)
        (engine {
          replicas = 1;
          tensor_parallel = 2;
        })
      ];
      appliance.gpu.peerToPeer = "driver";
      appliance.settings.engines.agents.options.numa-bind = true;
    };
    gives = c: c.systemd.services.appliance-engine-agents.serviceConfig ? NUMAPolicy;
    is = false;
  };
}
