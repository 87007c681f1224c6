# One unit per replica. `appliance engine exec` builds the command line of the engine; this module defines its sandbox,
# its environment and how it stops.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; })
    cardAccess
    cardsOf
    cardsOfRank
    credentials
    environmentMount
    hardened
    numaNodes
    renderAccess
    secretPath
    ;
  inherit (config) appliance;
  cfg = appliance.engines;
  inherit (lib) mkOption types;

  # A single replica has the engine's name; several are NAME.0, NAME.1 …, as in appliance/engines/argv.py.
  # A server of kind http runs by itself.
  replicas = lib.concatLists (
    lib.mapAttrsToList (
      name: engine:
      map (index: {
        inherit engine index;
        rank = 0;
        engineName = name;
        name = if engine.replicas == 1 then name else "${name}.${toString index}";
      }) (lib.range 0 (engine.replicas - 1))
    ) (lib.filterAttrs (_: e: e.kind != "http") appliance.myEngines)
  );
  # Ranks without an HTTP server, of engines whose first host is another one. A Ray node runs as a unit of the operator.
  followers = lib.mapAttrsToList (name: part: {
    inherit (part) engine rank;
    index = 0;
    engineName = name;
    name = "${name}.rank${toString part.rank}";
  }) (lib.filterAttrs (_: part: part.rank > 0 && part.engine.distributed == "native") appliance.myRanks);
  # Engines with a process on this host.
  present = appliance.myEngines // lib.mapAttrs (_: part: part.engine) appliance.myRanks;
  # Addresses of all hosts of an engine, this one's too: a rank also connects to itself.
  linkAddresses = engine: map (link: link.address) (lib.filter (link: link != null) (
    map (node: appliance.settings.hosts.${node}.link or null) engine.nodes
  ));
  cardsHere =
    replica:
    if replica.engine.nodes == [ ] then
      cardsOf replica.engine replica.index
    else
      cardsOfRank replica.engine replica.rank;
  ports = map (r: {
    port = r.engine.port + r.index;
    inherit (r) name;
  }) replicas;
  clashes = lib.filter (
    p: lib.count (q: q.port == p.port) ports > 1 || p.port == appliance.settings.gateway.port
  ) ports;
  odd = lib.filterAttrs (
    _: e:
    !(lib.elem e.tensor_parallel [
      1
      2
      4
      8
      16
    ])
  ) present;
  # The locked wheels contain no CPU build of vLLM: that one is for `make up`, on machines without Nix.
  homeless = lib.filterAttrs (
    _: e: e.kind == "vllm" && e.device == "cpu" && e.command == null
  ) present;
  # nixpkgs has no package of its weights.
  packaged = lib.filterAttrs (_: e: e.kind == "embedder") appliance.myEngines;
  # The unit mounts the folder of the environment.
  loose = lib.filterAttrs (
    _: e:
    e.kind == "vllm" && e.command != null && builtins.match "(/[^/: ]+)+/bin/[^/: ]+" "${e.command}" == null
  ) present;
  absent = lib.filterAttrs (
    name: e:
    e.device != "cpu"
    && !(lib.all (i: lib.any (g: g.index == i) appliance.thisHost.gpus) (
      if e.nodes == [ ] then e.gpus else cardsOfRank e appliance.myRanks.${name}.rank
    ))
  ) present;
  # Without the firewall, every machine of the network would reach the ranks.
  exposed = lib.filterAttrs (_: _: !appliance.network.firewall.enable) appliance.myRanks;
  # Its gateway would look on loopback for engines that another host serves.
  rankOnly = lib.attrNames appliance.myRanks != [ ] && appliance.myEngines == { };
  names = attrs: lib.concatStringsSep ", " (lib.attrNames attrs);

  # Whether the engine runs in the environment of this flake, not in another environment of `command`.
  own = engine: engine.command != null && lib.hasPrefix "${cfg.cudaEnvironment}/" engine.command;
  # Replicas of an engine share the kernels that they compile, and with them the user that owns the files. A user's name
  # has 31 characters at most.
  sharedName =
    engineName:
    if builtins.match "[a-z0-9_-]{1,24}" engineName != null then
      "engine-${engineName}"
    else
      "engine-${lib.substring 0 16 (builtins.hashString "sha256" engineName)}";
  # Compiled kernels are kept as long as this version stays.
  cachesVersion =
    engine:
    if engine.command == null then
      engine.kind
    else if own engine then
      cfg.cudaEnvironment.cachesVersion or (baseNameOf cfg.cudaEnvironment)
    else
      lib.substring 0 16 (builtins.hashString "sha256" engine.command);

  sandbox =
    replica:
    let
      cuda = replica.engine.device == "cuda";
      vulkan = replica.engine.device == "vulkan";
    in
    hardened
    // {
      DynamicUser = true;
      User = sharedName replica.engineName;
      # Torch Inductor, Triton and FlashInfer compile kernels in the process: writable pages become executable.
      MemoryDenyWriteExecute = false;
      # Loopback for the API, Unix sockets between workers, netlink for NCCL, which lists the interfaces.
      RestrictAddressFamilies = [
        "AF_UNIX"
        "AF_INET"
        "AF_INET6"
        "AF_NETLINK"
      ];
      IPAddressAllow =
        if replica.engine.nodes == [ ] then
          "localhost"
        else
          [ "localhost" ] ++ linkAddresses replica.engine;
      # With @resources: workers set affinity and priorities, and bind memory to NUMA nodes (mbind).
      SystemCallFilter = [
        "@system-service"
        "~@privileged"
      ]
      # torch's symmetric memory opens the allocations of the other workers by their file descriptors.
      ++ lib.optional (
        cuda && replica.engine.tensor_parallel * replica.engine.pipeline_parallel > 1
      ) "pidfd_getfd";
      # The engine reads /proc/meminfo and /proc/cpuinfo to size its caches, /proc/driver/nvidia to find the cards.
      ProcSubset = "all";
      LimitMEMLOCK = "infinity"; # pinned host buffers
      LimitNOFILE = 65536; # one socket per stream, one file per shard
      # Short of RAM, the kernel ends an engine, not the gateway.
      OOMScoreAdjust = 500;
      # The folder is absent on a host whose engines need no weights, as with the mock.
      ReadOnlyPaths = [ "-${appliance.models.store.path}" ];
    }
    // lib.optionalAttrs cuda {
      inherit (cardAccess) PrivateDevices;
      DeviceAllow = cardAccess.DeviceAllow ++ [ "char-nvidia-caps rw" ];
      # The driver checks the real user of the process, and NCCL shares memory between processes of one user.
      PrivateUsers = false;
    }
    // lib.optionalAttrs vulkan renderAccess;

  numaPolicy =
    replica:
    let
      nodes = numaNodes appliance.thisHost.gpus (cardsHere replica);
    in
    lib.optionalAttrs (appliance.numa.pin && lib.length nodes == 1) {
      # Preferred, not bound: a full node must slow an engine down, never kill it.
      NUMAPolicy = "preferred";
      NUMAMask = toString (lib.head nodes);
      CPUAffinity = "numa";
    };

  unit =
    replica:
    lib.nameValuePair "appliance-engine-${replica.name}" {
      description = "Engine ${replica.name}: ${replica.engine.model}";
      # The gateway starts an on-demand engine when a client requests its model.
      # A rank on another host than the gateway waits for the first one, without memory of its cards.
      wantedBy = lib.optional (
        replica.engine.residency == "always" || replica.rank > 0
      ) "multi-user.target";
      after = lib.optional (replica.engine.nodes != [ ]) "network-online.target" ++ [
        "appliance-gpu-power.service"
        "nvidia-persistenced.service"
        "appliance-models-verify.service"
      ];
      # Not required: a damaged model stops its own engines only, for each start compares its files with the record.
      wants =
        lib.optional (appliance.models.lock != null) "appliance-models-verify.service"
        ++ lib.optional (replica.engine.nodes != [ ]) "network-online.target";
      unitConfig = {
        RequiresMountsFor = [ appliance.models.store.path ];
        # A model that does not fit fails each time; the smoke test reports it, a restart loop would hide it. The
        # starts that the gateway requests also count. An on-demand engine starts with every turn of its model, so it
        # has no limit here: the gateway limits its failures.
        # The other ranks of an engine restart with its first one, which has the limit.
        StartLimitIntervalSec =
          if replica.engine.residency == "on-demand" || replica.rank > 0 then 0 else "1h";
        StartLimitBurst = 5;
      };
      path = [
        pkgs.gcc
        pkgs.ninja
      ]
      # vLLM on the CPU calls lscpu to bind its threads.
      ++ lib.optional (replica.engine.device == "cpu") pkgs.util-linux;
      restartTriggers = [ appliance.configFile ];
      environment = {
        HF_HOME = appliance.models.store.path;
        # Workers connect over loopback; by default they would use the LAN address, which the sandbox blocks.
        VLLM_HOST_IP = "127.0.0.1";
        GLOO_SOCKET_IFNAME = "lo";
        NCCL_SOCKET_IFNAME = "lo";
      }
      // lib.optionalAttrs (replica.engine.device == "cuda") {
        # Kernel compilers find nvcc, a C compiler and the driver by these names; NixOS has no ldconfig.
        CUDA_HOME = "${if own replica.engine then environmentMount else cfg.cudaEnvironment}/${cfg.cudaHome}";
        TRITON_LIBCUDA_PATH = "/run/opengl-driver/lib";
        LD_LIBRARY_PATH = "/run/opengl-driver/lib";
        # FlashInfer links its kernels against -lcuda, which only the running driver has.
        FLASHINFER_EXTRA_LDFLAGS = "-L/run/opengl-driver/lib";
        CC = lib.getExe' pkgs.gcc "gcc";
      }
      // lib.optionalAttrs (replica.engine.device == "vulkan") {
        # The compiled shaders stay: a start without them compiles for minutes.
        MESA_SHADER_CACHE_DIR = "/var/cache/appliance-engine-${replica.engineName}/mesa";
      }
      // lib.optionalAttrs (appliance.gpu.peerToPeer == "off") { NCCL_P2P_DISABLE = "1"; };
      serviceConfig =
        sandbox replica
        // numaPolicy replica
        // {
          Type = "exec";
          # The first start compiles kernels; the caches keep them.
          ExecStart =
            "${lib.getExe appliance.package} engine exec ${
              if replica.rank == 0 then
                replica.name
              else
                "${replica.engineName} --rank ${toString replica.rank}"
            } --config /etc/appliance/appliance.json"
            + " --caches %C/appliance-engine-${replica.engineName} ${cachesVersion replica.engine}"
            + lib.optionalString (replica.engine.kind == "vllm") " --environment ${environmentMount}"
            + lib.optionalString (appliance.models.lock != null) " --lock /etc/appliance/models.lock";
          CacheDirectory = "appliance-engine-${replica.engineName}";
          CacheDirectoryMode = "0700";
          Restart = "on-failure";
          RestartSec = 5;
          # Only the front process gets SIGTERM: it drains, then stops its workers itself.
          KillMode = "mixed";
          # Longer than the engine's own deadline, so that the engine ends the last streams, not SIGKILL.
          TimeoutStopSec = replica.engine.shutdown_timeout_s + 15;
          LoadCredential = credentials cfg.credentials;
        }
        // lib.optionalAttrs (replica.engine.kind == "vllm" && replica.engine.command != null) {
          # bin/python in the environment's own folder
          BindReadOnlyPaths = [ "${dirOf (dirOf replica.engine.command)}:${environmentMount}" ];
        };
    };
in
{
  options.appliance.engines = {
    enable = lib.mkEnableOption "the engines of this host, one unit per replica";
    cudaEnvironment = mkOption {
      type = types.package;
      default = pkgs.callPackage ./packages/engine-cuda.nix { };
      defaultText = lib.literalMD "the locked wheel set, modules/wheels.json";
      example = lib.literalExpression "inputs.appliance.packages.x86_64-linux.engine-cuda";
      description = "Python environment of vLLM with CUDA.";
    };
    cudaHome = mkOption {
      type = types.str;
      default = "lib/python${appliance.pins.python}/site-packages/nvidia/cu13";
      defaultText = lib.literalMD "nvidia/cu13 in the environment's site-packages";
      example = "lib/python3.13/site-packages/nvidia/cu13";
      description = "Folder of nvcc and its headers inside the environment.";
    };
    llamacpp = mkOption {
      type = types.package;
      default = pkgs.llama-cpp.override { cudaSupport = true; };
      defaultText = lib.literalExpression "pkgs.llama-cpp.override { cudaSupport = true; }";
      example = lib.literalExpression "pkgs.llama-cpp";
      description = "Package with llama-server.";
    };
    llamacppVulkan = mkOption {
      type = types.package;
      default = pkgs.llama-cpp.override { vulkanSupport = true; };
      defaultText = lib.literalExpression "pkgs.llama-cpp.override { vulkanSupport = true; }";
      example = lib.literalExpression "pkgs.llama-cpp-vulkan";
      description = "Package with llama-server for engines whose device is vulkan.";
    };
    credentials = mkOption {
      type = types.attrsOf secretPath;
      default = { };
      example = {
        hub-token = "/run/secrets/hub-token";
      };
      description = "Secrets that every engine gets as systemd credentials, by name.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = clashes == [ ];
        message = "appliance.settings.engines: port ${
          lib.concatMapStringsSep ", " toString (lib.unique (map (p: p.port) clashes))
        } is used twice (${
          lib.concatStringsSep ", " (lib.unique (map (p: p.name) clashes))
        }, gateway ${toString appliance.settings.gateway.port}): give each replica and the gateway a port of its own.";
      }
      {
        assertion = odd == { };
        message = "appliance.settings.engines.${names odd}: tensor_parallel must be 1, 2, 4, 8 or 16, since it must divide the attention heads of the model: use fewer cards, or several replicas.";
      }
      {
        assertion = homeless == { };
        message = "appliance.settings.engines.${names homeless}: this flake has no CPU build of vLLM: set command to the Python of one, or kind = \"llamacpp\".";
      }
      {
        assertion = packaged == { };
        message = "appliance.settings.engines.${names packaged}: nixpkgs does not have the package of kind = \"embedder\": serve Qwen3-Embedding with vLLM, or on the CPU with kind = \"llamacpp\".";
      }
      {
        assertion = loose == { };
        message = "appliance.settings.engines.${names loose}: command must be the Python of an environment, as in /opt/vllm/bin/python, without colons and spaces: name its whole path.";
      }
      {
        assertion = absent == { };
        message = "appliance.settings.engines.${names absent}: host ${appliance.host} does not have one of its cards: list the card under hosts.${appliance.host}.gpus, or correct gpus.";
      }
      {
        assertion = exposed == { };
        message = "appliance.settings.engines.${names exposed}: its ranks accept commands without authentication, and appliance.network.firewall.enable is false: set it to true, which opens their ports to each other only.";
      }
      {
        assertion = !(rankOnly && appliance.gateway.enable);
        message = "appliance.host = \"${appliance.host}\" has ranks of ${names appliance.myRanks} and serves no engine: set appliance.gateway.enable, appliance.observe.enable and appliance.smoke.enable to false here, the first host of nodes serves it.";
      }
    ];
    # The drivers of Vulkan, under /run/opengl-driver.
    hardware.graphics.enable = lib.mkIf (lib.any (
      r: r.engine.device == "vulkan"
    ) replicas) true;
    systemd.services = lib.listToAttrs (map unit (replicas ++ followers));
  };
}
