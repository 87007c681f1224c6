# One unit per replica. What an engine's command line is, `appliance engine exec` knows; here stands what the
# process may touch and how it ends.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; })
    cardsOf
    credentials
    hardened
    numaNodes
    secretPath
    ;
  inherit (config) appliance;
  cfg = appliance.engines;
  inherit (lib) mkOption types;

  # A lone replica bears the engine's own name; several are NAME.0, NAME.1 … as appliance/engines/argv.py has it.
  replicas = lib.concatLists (
    lib.mapAttrsToList (
      name: engine:
      map (index: {
        inherit engine index;
        name = if engine.replicas == 1 then name else "${name}.${toString index}";
      }) (lib.range 0 (engine.replicas - 1))
    ) appliance.myEngines
  );
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
  ) appliance.myEngines;
  # No CUDA-free vLLM is locked here: its CPU build is for `make up`, on machines without Nix.
  homeless = lib.filterAttrs (
    _: e: e.kind == "vllm" && e.device == "cpu" && e.command == null
  ) appliance.myEngines;
  absent = lib.filterAttrs (
    _: e: e.device == "cuda" && !(lib.all (i: lib.any (g: g.index == i) appliance.thisHost.gpus) e.gpus)
  ) appliance.myEngines;
  names = attrs: lib.concatStringsSep ", " (lib.attrNames attrs);

  sandbox =
    replica:
    let
      cuda = replica.engine.device == "cuda";
    in
    hardened
    // {
      DynamicUser = true;
      # Torch Inductor, Triton and FlashInfer compile kernels in the process: writable pages become executable.
      MemoryDenyWriteExecute = false;
      # Loopback for the API, Unix sockets between workers; NCCL reads the interfaces over netlink.
      RestrictAddressFamilies = [
        "AF_UNIX"
        "AF_INET"
        "AF_INET6"
        "AF_NETLINK"
      ];
      IPAddressAllow = "localhost";
      # Its own scheduler calls: workers set affinity and priorities, and pin memory (mbind, mlock).
      SystemCallFilter = [
        "@system-service"
        "~@privileged"
        "mbind"
        "set_mempolicy"
        "get_mempolicy"
        "move_pages"
        "migrate_pages"
      ];
      # /proc/meminfo, /proc/cpuinfo and /proc/driver/nvidia size the caches and find the cards.
      ProcSubset = "all";
      LimitMEMLOCK = "infinity"; # pinned host buffers
      LimitNOFILE = 65536; # one socket per stream, one file per shard
      ReadOnlyPaths = [ appliance.models.store.path ];
    }
    // lib.optionalAttrs cuda {
      # The cards are devices; no other device is opened up.
      PrivateDevices = false;
      DeviceAllow = [
        "char-nvidia-frontend rw"
        "char-nvidia rw"
        "char-nvidia-uvm rw"
        "char-nvidia-caps rw"
      ];
      # The driver checks the caller's real user for its nodes, and NCCL shares memory between processes by it.
      PrivateUsers = false;
    };

  numaPolicy =
    replica:
    let
      nodes = numaNodes appliance.thisHost.gpus (cardsOf replica.engine replica.index);
    in
    lib.optionalAttrs (appliance.numa.pin && lib.length nodes == 1) {
      # Preferred, not bound: a node that is full shall slow an engine down, never kill it.
      NUMAPolicy = "preferred";
      NUMAMask = toString (lib.head nodes);
      CPUAffinity = "numa";
    };

  unit =
    replica:
    lib.nameValuePair "appliance-engine-${replica.name}" {
      description = "Engine ${replica.name}: ${replica.engine.model}";
      # An engine on demand is started by the gateway, when somebody asks for its model.
      wantedBy = lib.optional (replica.engine.residency == "always") "multi-user.target";
      after = [
        "appliance-gpu-power.service"
        "nvidia-persistenced.service"
        "appliance-models-verify.service"
      ];
      requires = lib.optional (appliance.models.lock != null) "appliance-models-verify.service";
      unitConfig = {
        RequiresMountsFor = [ appliance.models.store.path ];
        # A model that does not fit fails the same way each time; the smoke test says so, a loop would hide it. Starts by
        # hand count too: an engine on demand starts with every turn of its model, and the gateway bounds its failures.
        StartLimitIntervalSec = if replica.engine.residency == "on-demand" then 0 else "1h";
        StartLimitBurst = 5;
      };
      path = [
        pkgs.gcc
        pkgs.ninja
      ];
      restartTriggers = [ appliance.configFile ];
      environment = {
        HOME = "%C/appliance-engine-${replica.name}";
        HF_HOME = appliance.models.store.path;
        # Kernels are compiled at the first start; keep them, and keep them apart from other replicas'.
        XDG_CACHE_HOME = "%C/appliance-engine-${replica.name}";
        # Workers find each other on loopback; left alone they take the LAN address, which the sandbox refuses.
        VLLM_HOST_IP = "127.0.0.1";
        GLOO_SOCKET_IFNAME = "lo";
        NCCL_SOCKET_IFNAME = "lo";
      }
      // lib.optionalAttrs (replica.engine.device == "cuda") {
        # What compiles kernels looks for nvcc, a C compiler and the driver by these names; NixOS has no ldconfig.
        CUDA_HOME = "${cfg.cudaEnvironment}/${cfg.cudaHome}";
        TRITON_LIBCUDA_PATH = "/run/opengl-driver/lib";
        LD_LIBRARY_PATH = "/run/opengl-driver/lib";
        CC = lib.getExe' pkgs.gcc "gcc";
      }
      // lib.optionalAttrs (appliance.gpu.peerToPeer == "off") { NCCL_P2P_DISABLE = "1"; };
      serviceConfig =
        sandbox replica
        // numaPolicy replica
        // {
          Type = "exec";
          ExecStart = "${lib.getExe appliance.package} engine exec ${replica.name} --config /etc/appliance/appliance.json";
          CacheDirectory = "appliance-engine-${replica.name}";
          CacheDirectoryMode = "0700";
          Restart = "on-failure";
          RestartSec = 5;
          # Only the front process gets SIGTERM: it finishes what runs, then ends its workers itself.
          KillMode = "mixed";
          # Above the engine's own deadline, so that it is the engine which ends the last streams, not SIGKILL.
          TimeoutStopSec = replica.engine.shutdown_timeout_s + 15;
          LoadCredential = credentials cfg.credentials;
        };
    };
in
{
  options.appliance.engines = {
    enable = lib.mkEnableOption "this host's engines, a unit per replica";
    cudaEnvironment = mkOption {
      type = types.package;
      default = pkgs.callPackage ./packages/engine-cuda.nix { };
      defaultText = lib.literalMD "the locked wheel set, modules/wheels.json";
      example = lib.literalExpression "inputs.appliance.packages.x86_64-linux.engine-cuda";
      description = "Python environment of vLLM on the cards.";
    };
    cudaHome = mkOption {
      type = types.str;
      default = "lib/python${appliance.pins.python}/site-packages/nvidia/cu13";
      defaultText = lib.literalMD "nvidia/cu13 in the environment's site-packages";
      example = "lib/python3.13/site-packages/nvidia/cu13";
      description = "Where nvcc and its headers lie inside the environment.";
    };
    llamacpp = mkOption {
      type = types.package;
      default = pkgs.llama-cpp.override { cudaSupport = true; };
      defaultText = lib.literalExpression "pkgs.llama-cpp.override { cudaSupport = true; }";
      example = lib.literalExpression "pkgs.llama-cpp";
      description = "Package of llama-server.";
    };
    credentials = mkOption {
      type = types.attrsOf secretPath;
      default = { };
      example = {
        hub-token = "/run/secrets/hub-token";
      };
      description = "Secrets given to every engine as systemd credentials, by name.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = clashes == [ ];
        message = "appliance.settings.engines: port ${
          lib.concatMapStringsSep ", " toString (lib.unique (map (p: p.port) clashes))
        } is taken twice (${
          lib.concatStringsSep ", " (lib.unique (map (p: p.name) clashes))
        }, gateway ${toString appliance.settings.gateway.port}): give each replica and the gateway a port of its own.";
      }
      {
        assertion = odd == { };
        message = "appliance.settings.engines.${names odd}: tensor_parallel must be 1, 2, 4, 8 or 16, since it has to divide the model's attention heads: use fewer cards, or several replicas.";
      }
      {
        assertion = homeless == { };
        message = "appliance.settings.engines.${names homeless}: vLLM on the CPU has no environment in this flake: set command to the Python of one, or kind = \"llamacpp\".";
      }
      {
        assertion = absent == { };
        message = "appliance.settings.engines.${names absent}: names a card that host ${appliance.host} does not have: list the card under hosts.${appliance.host}.gpus or correct gpus.";
      }
    ];
    systemd.services = lib.listToAttrs (map unit replicas);
  };
}
