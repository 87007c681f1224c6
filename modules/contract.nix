# The site: one JSON file that appliance/contract/model.py validates. RFC 42: `settings` is that file; typed here is
# only what NixOS itself has to know. Keys are spelled as in the file, so its documentation serves for both.
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
  table =
    description: options:
    mkOption {
      type = types.attrsOf (
        types.submodule {
          freeformType = types.attrsOf format.type;
          inherit options;
        }
      );
      default = { };
      inherit description;
    };
  # An option that is left alone is left out of the file: contract/model.py has its own default.
  dropNull =
    value:
    if lib.isAttrs value then
      lib.mapAttrs (_: dropNull) (lib.filterAttrs (_: v: v != null) value)
    else if lib.isList value then
      map dropNull value
    else
      value;
  withCommand =
    engine:
    if engine.host == cfg.host && engine.command == null && cfg.engines.enable then
      engine // { command = cfg.engines.commandFor engine; }
    else
      engine;
  rendered = dropNull (
    cfg.settings // { engines = lib.mapAttrs (_: withCommand) cfg.settings.engines; }
  );

  defaultWatts =
    model:
    if lib.hasInfix "Max-Q" model then
      300
    else if lib.hasInfix "RTX PRO 6000" model then
      450
    else
      null;
  card = types.submodule (
    { config, ... }:
    {
      freeformType = types.attrsOf format.type;
      options = {
        index = mkOption {
          type = types.ints.between 0 63;
          example = 0;
          description = "Index of the card, as nvidia-smi shows it.";
        };
        model = mkOption {
          type = types.nonEmptyStr;
          example = "RTX PRO 6000 Blackwell Workstation";
          description = "What card it is.";
        };
        memory_mib = mkOption {
          type = types.ints.positive;
          example = 97887;
          description = "Memory the driver shows, in MiB.";
        };
        numa_node = mkOption {
          type = types.nullOr types.ints.unsigned;
          default = null;
          example = 0;
          description = "NUMA node of the card's slot (`cat /sys/bus/pci/devices/…/numa_node`).";
        };
        power_limit_w = mkOption {
          type = types.nullOr types.ints.positive;
          # 450 W costs at most 8 % of prefill and nothing of decode against 600 W, and the room stays cooler.
          default = defaultWatts config.model;
          defaultText = lib.literalMD "300 for a Max-Q, 450 for the other RTX PRO 6000, else the card's own";
          example = 450;
          description = "Power limit in watts.";
        };
      };
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
      description = "Which of `appliance.settings.hosts` this machine is.";
    };
    settings = mkOption {
      description = ''
        The site, rendered to /etc/appliance/appliance.json and validated by `appliance check` while the system
        is built. Every key of the file may stand here; `appliance schema` describes them.
      '';
      default = { };
      type = types.submodule {
        freeformType = types.attrsOf format.type;
        options = {
          version = mkOption {
            type = types.enum [ 1 ];
            default = 1;
            example = 1;
            description = "Version of the contract.";
          };
          hosts =
            table "Machines by name." {
              memory_gib = mkOption {
                type = types.ints.positive;
                example = 128;
                description = "RAM in GiB.";
              };
              gpus = mkOption {
                type = types.listOf card;
                default = [ ];
                example = [
                  {
                    index = 0;
                    model = "RTX PRO 6000 Blackwell Workstation";
                    memory_mib = 97887;
                  }
                ];
                description = "Its cards.";
              };
            }
            // {
              example = {
                gpu.memory_gib = 128;
              };
            };
          models =
            table "Models by the name clients use." {
              source = mkOption {
                type = types.nonEmptyStr;
                example = "Qwen/Qwen3-30B-A3B";
                description = "Repository on the model hub, or an absolute folder.";
              };
            }
            // {
              example = {
                qwen3-30b.source = "Qwen/Qwen3-30B-A3B";
              };
            };
          engines =
            table "Engines by name." {
              host = mkOption {
                type = types.str;
                example = "gpu";
                description = "The host it runs on.";
              };
              model = mkOption {
                type = types.str;
                example = "qwen3-30b";
                description = "The model it serves.";
              };
              kind = mkOption {
                type = types.enum [
                  "vllm"
                  "llamacpp"
                  "fake"
                ];
                default = "vllm";
                example = "llamacpp";
                description = "What serves it; `fake` is for tests.";
              };
              device = mkOption {
                type = types.enum [
                  "cuda"
                  "cpu"
                ];
                default = "cuda";
                example = "cpu";
                description = "Where it computes.";
              };
              gpus = mkOption {
                type = types.listOf types.ints.unsigned;
                default = [ ];
                example = [
                  0
                  1
                ];
                description = "Cards, replica after replica.";
              };
              replicas = mkOption {
                type = types.ints.between 1 64;
                default = 1;
                example = 2;
                description = "Independent copies.";
              };
              tensor_parallel = mkOption {
                type = types.ints.between 1 64;
                default = 1;
                example = 4;
                description = "Cards that share one copy.";
              };
              port = mkOption {
                type = types.port;
                example = 8101;
                description = "First loopback port; replica i takes port + i.";
              };
              shutdown_timeout_s = mkOption {
                type = types.ints.between 0 3600;
                default = 30;
                example = 120;
                description = "Seconds a stopping replica may spend on what still runs.";
              };
              start_timeout_s = mkOption {
                type = types.ints.between 1 86400;
                default = 600;
                example = 1200;
                description = "Seconds from start to the first token.";
              };
              residency = mkOption {
                type = types.enum [
                  "always"
                  "on-demand"
                ];
                default = "always";
                example = "on-demand";
                description = "Always loaded, or only while requests ask for its model; then the gateway starts and stops its units.";
              };
              options = mkOption {
                type = types.attrsOf format.type;
                default = { };
                example = {
                  tool-call-parser = "hermes";
                };
                description = "Further flags of the engine, without dashes.";
              };
              command = mkOption {
                type = types.nullOr types.str;
                default = null;
                example = "/run/current-system/sw/bin/llama-server";
                description = "Python of the engine's environment or the llama-server binary; set from `appliance.engines` on this host.";
              };
            }
            // {
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
          gateway = mkOption {
            description = "The gateway.";
            default = { };
            example = {
              port = 8000;
            };
            type = types.submodule {
              freeformType = types.attrsOf format.type;
              options = {
                host = mkOption {
                  type = types.str;
                  default = "127.0.0.1";
                  example = "10.77.0.1";
                  description = "Address it listens on: loopback or the tunnel's.";
                };
                port = mkOption {
                  type = types.port;
                  default = 8000;
                  example = 8000;
                  description = "Port it listens on.";
                };
                data_dir = mkOption {
                  type = types.str;
                  default = "/var/lib/appliance-gateway";
                  example = "/var/lib/appliance-gateway";
                  description = "Folder of keys and usage.";
                };
                max_body_bytes = mkOption {
                  type = types.ints.between 1 2147483648;
                  default = 16777216;
                  example = 16777216;
                  description = "Largest request body; the edge refuses above it too.";
                };
                browser_origins = mkOption {
                  type = types.listOf (
                    types.strMatching "[*]|[a-z][a-z0-9+.-]*://([a-z0-9._~-]+|\\[[0-9a-f:.]+])(:[0-9]{1,5})?"
                  );
                  default = [ ];
                  example = [
                    "https://chat.example.org"
                    "app://obsidian.md"
                  ];
                  description = "Web origins whose pages may use the service from a browser; `*` alone allows every one. The edge reads it from the VPS's own settings, for the answers that it gives itself.";
                };
              };
            };
          };
        };
      };
      example = {
        hosts.gpu.memory_gib = 128;
      };
    };
    # What other modules read.
    thisHost = mkOption {
      type = types.raw;
      internal = true;
      readOnly = true;
      default =
        cfg.settings.hosts.${cfg.host} or {
          memory_gib = 0;
          gpus = [ ];
        };
      description = "This machine's entry of the site.";
    };
    myEngines = mkOption {
      type = types.raw;
      internal = true;
      readOnly = true;
      default = lib.filterAttrs (_: e: e.host == cfg.host) cfg.settings.engines;
      description = "Engines of this machine.";
    };
    configFile = mkOption {
      type = types.raw;
      internal = true;
      readOnly = true;
      default = format.generate "appliance.json" rendered;
      description = "The rendered site.";
    };
  };

  config = lib.mkIf (cfg.gateway.enable || cfg.engines.enable) {
    assertions = [
      {
        assertion = cfg.settings.hosts ? ${cfg.host};
        message = "appliance.host = \"${cfg.host}\" is none of appliance.settings.hosts (${lib.concatStringsSep ", " (lib.attrNames cfg.settings.hosts)}): add it there, or set appliance.host.";
      }
    ];
    environment.etc."appliance/appliance.json".source = cfg.configFile;
    # A site that cannot work does not build: the same command that a person runs.
    system.checks = [
      (pkgs.runCommand "appliance-check" { } ''
        ${lib.getExe cfg.package} check ${cfg.configFile}
        touch $out
      '')
    ];
  };
}
