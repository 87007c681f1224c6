# The site: one JSON file that appliance/contract/model.py validates. `settings` is that file (RFC 42:
# https://github.com/NixOS/rfcs/blob/master/rfcs/0042-config-option.md). Only the keys that modules read have options
# here. Keys have the same names as in the file, so its documentation covers both.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.appliance;
  format = pkgs.formats.json { };
  inherit (lib) mkOption types;
  schema = import ./schema.nix { inherit lib format; };
  inherit (import ./gpu/cards.nix { inherit lib; }) power;

  submodule =
    options:
    types.submodule {
      freeformType = types.attrsOf format.type;
      inherit options;
    };

  # A key that is null is absent from the file: contract/model.py has its own default.
  dropNull =
    value:
    if lib.isAttrs value then
      lib.mapAttrs (_: dropNull) (lib.filterAttrs (_: v: v != null) value)
    else if lib.isList value then
      map dropNull value
    else
      value;

  card = types.submodule (
    { config, ... }:
    let
      known = power config.model;
    in
    {
      freeformType = types.attrsOf format.type;
      options = schema.section "Gpu" {
        index.example = 0;
        model = { };
        numa_node.example = 0;
        power_limit_w = {
          default = if known == null then null else known.recommended;
          defaultText = lib.literalMD "300 for a Max-Q, 450 for the other RTX PRO 6000, else the card's own";
          example = 450;
        };
      };
    }
  );
  ups = submodule (
    schema.section "Ups" {
      watts = { };
      host_watts.example = 200;
      reserve_s.example = 300;
    }
  );
  link = submodule (
    schema.section "HostLink" {
      address = { };
      interface = { };
    }
  );
  host = submodule (
    schema.section "Host" {
      memory_gib.example = 128;
      link = {
        type = types.nullOr link;
        example = {
          address = "10.88.0.1";
          interface = "enp65s0f0";
        };
      };
      ups = {
        type = types.nullOr ups;
        example = {
          watts = 900;
        };
      };
      gpus = {
        type = types.listOf card;
        example = [
          {
            index = 0;
            model = "RTX PRO 6000 Blackwell Workstation";
            memory_mib = 97887;
          }
        ];
      };
    }
  );
  model = submodule (
    schema.section "Model" {
      source = { };
      revision.example = "ad44e777bcd18fa416d9da3bd8f70d33ebb85d39";
    }
  );

  program =
    engine:
    if !(lib.elem cfg.host ([ engine.host ] ++ engine.nodes)) || !cfg.engines.enable then
      null
    else if engine.kind == "vllm" && engine.device == "cuda" then
      "${cfg.engines.cudaEnvironment}/bin/python"
    else if engine.kind == "llamacpp" && engine.device == "vulkan" then
      lib.getExe' cfg.engines.llamacppVulkan "llama-server"
    else if engine.kind == "llamacpp" then
      lib.getExe' cfg.engines.llamacpp "llama-server"
    else
      null;
  engine = types.submodule (
    { config, ... }:
    {
      freeformType = types.attrsOf format.type;
      options = schema.section "Engine" {
        host.example = "gpu";
        model.example = "qwen3-30b";
        kind.example = "llamacpp";
        device.example = "cpu";
        gpus.example = [
          0
          1
        ];
        replicas.example = 2;
        tensor_parallel.example = 4;
        pipeline_parallel.example = 2;
        nodes = { };
        master_port.example = 29511;
        distributed.example = "ray";
        port.example = 8101;
        shutdown_timeout_s.example = 120;
        start_timeout_s.example = 1200;
        residency.example = "on-demand";
        options = { };
        command = {
          default = program config;
          defaultText = lib.literalMD "the program of `appliance.engines`, for an engine of this host";
          example = "/run/current-system/sw/bin/llama-server";
        };
      };
    }
  );
  gateway = submodule (
    schema.section "Gateway" {
      host.example = "10.77.0.1";
      port.example = 8000;
      data_dir = {
        default = "/var/lib/appliance-gateway";
        example = "/var/lib/appliance-gateway";
      };
      max_body_bytes.example = 16777216;
      max_audio_bytes.example = 104857600;
      # The VPS reads this key for the edge's own responses. It builds no site that `appliance check` could validate,
      # so the type does.
      browser_origins.type = types.listOf (
        types.strMatching "[*]|[a-z][a-z0-9+.-]*://([a-z0-9._~-]+|\\[[0-9a-f:.]+])(:[0-9]{1,5})?"
      );
    }
  );
in
{
  options.appliance = {
    host = mkOption {
      type = types.str;
      default = config.networking.hostName;
      defaultText = lib.literalExpression "config.networking.hostName";
      example = "gpu";
      description = "The key of this machine in `appliance.settings.hosts`.";
    };
    settings = mkOption {
      description = ''
        The site, rendered to /etc/appliance/appliance.json and validated by `appliance check` during the build.
        It accepts every key of the file; `appliance schema` describes them all. The options below are the keys
        that the modules read.
      '';
      default = { };
      example = {
        hosts.gpu.memory_gib = 128;
      };
      type = submodule (
        schema.topLevel {
          version = {
            default = 1;
            example = 1;
          };
          hosts = {
            type = types.attrsOf host;
            default = { };
            example = {
              gpu.memory_gib = 128;
            };
          };
          models = {
            type = types.attrsOf model;
            default = { };
            example = {
              qwen3-30b.source = "Qwen/Qwen3-30B-A3B";
            };
          };
          engines = {
            type = types.attrsOf engine;
            default = { };
            example = {
              chat = {
                host = "gpu";
                model = "qwen3-30b";
                gpus = [ 0 ];
                context = 32768;
                concurrency = 64;
                port = 8101;
              };
            };
          };
          gateway = {
            type = gateway;
            default = { };
            example = {
              port = 8000;
            };
          };
        }
      );
    };
    # Read by other modules.
    thisHost = mkOption {
      type = types.raw;
      internal = true;
      readOnly = true;
      default =
        cfg.settings.hosts.${cfg.host} or {
          memory_gib = 0;
          gpus = [ ];
        };
      description = "The entry of this machine in the site.";
    };
    myEngines = mkOption {
      type = types.raw;
      internal = true;
      readOnly = true;
      default = lib.filterAttrs (_: e: e.host == cfg.host) cfg.settings.engines;
      description = "Engines of this machine.";
    };
    # Engines over several hosts with a rank on this machine: the rank, the links of all hosts, the fixed ports. Ranks of
    # vLLM meet at the master port, and their watchers at the next one. The nodes of a Ray cluster meet at its head.
    # Beyond these, vLLM, gloo, NCCL and Ray listen on ports that the kernel chooses.
    myRanks = mkOption {
      type = types.raw;
      internal = true;
      readOnly = true;
      default = lib.mapAttrs (_: engine: {
        inherit engine;
        rank = lib.lists.findFirstIndex (node: node == cfg.host) 0 engine.nodes;
        links = map (node: cfg.settings.hosts.${node}.link or null) engine.nodes;
        ports =
          if engine.distributed == "ray" then
            [ 6379 ]
          else
            [
              engine.master_port
              (engine.master_port + 1)
            ];
      }) (lib.filterAttrs (_: e: lib.elem cfg.host e.nodes) cfg.settings.engines);
      description = "Engines over several hosts that have a rank on this machine.";
    };
    configFile = mkOption {
      type = types.raw;
      internal = true;
      readOnly = true;
      default = format.generate "appliance.json" (dropNull cfg.settings);
      description = "The rendered site.";
    };
  };

  config = lib.mkIf (cfg.gateway.enable || cfg.engines.enable) {
    assertions = [
      {
        assertion = cfg.settings.hosts ? ${cfg.host};
        message = "appliance.host = \"${cfg.host}\" is not in appliance.settings.hosts (${lib.concatStringsSep ", " (lib.attrNames cfg.settings.hosts)}): add it there, or set appliance.host.";
      }
    ];
    environment.etc."appliance/appliance.json".source = cfg.configFile;
    # An invalid site fails the build, with the same command that an operator runs.
    system.checks = [
      (pkgs.runCommand "appliance-check" { } ''
        ${lib.getExe cfg.package} check ${cfg.configFile}
        touch $out
      '')
    ];
  };
}
