# The site: engines, models, gateway. Only `appliance check` finds the `invalid` cases.
{ lib }:
let
  engine = more: { appliance.settings.engines.agents = lib.mapAttrs (_: lib.mkForce) more; };
  second = more: {
    appliance.settings.engines.second = {
      host = "gpu";
      model = "qwen3-30b";
      gpus = [ 1 ];
      context = 8192;
      concurrency = 8;
      port = 8110;
    }
    // more;
  };
  alone = engine {
    gpus = [ 0 ];
    replicas = 1;
  };
in
{
  "the shipped site is valid" = {
    host = "gpu";
    gives = c: c.appliance.settings.version;
    is = 1;
  };
  "two engines on one port" = {
    host = "gpu";
    module.imports = [
      alone
      (second { port = 8101; })
    ];
    refuses = "port 8101 is used twice (agents, second";
  };
  "a replica on the gateway's port" = {
    host = "gpu";
    module = engine { port = 7999; };
    refuses = "port 8000 is used twice (agents.1, gateway 8000)";
  };
  "tensor parallel over 3 cards" = {
    host = "gpu";
    module = engine {
      gpus = [
        0
        1
        2
      ];
      replicas = 1;
      tensor_parallel = 3;
    };
    refuses = "engines.agents: tensor_parallel must be 1, 2, 4, 8 or 16";
  };
  "a card that the host does not have" = {
    host = "gpu";
    module = engine {
      gpus = [
        0
        5
      ];
    };
    refuses = "engines.agents: host gpu does not have one of its cards";
  };
  "a host of another name" = {
    host = "gpu";
    module.appliance.host = "gpu2";
    refuses = "appliance.host = \"gpu2\" is not in appliance.settings.hosts (gpu)";
  };
  "a gateway on a public address" = {
    host = "gpu";
    module.appliance.settings.gateway.host = lib.mkForce "203.0.113.9";
    refuses = "\"203.0.113.9\" is neither loopback nor the tunnel address of this host";
  };
  "a gateway on every address" = {
    host = "gpu";
    module.appliance.settings.gateway.host = lib.mkForce "0.0.0.0";
    refuses = "only the VPS is public: set it to \"10.77.0.1\"";
  };
  "a gateway on loopback" = {
    host = "gpu";
    module.appliance.settings.gateway.host = lib.mkForce "127.0.0.1";
    gives = c: c.appliance.settings.gateway.host;
    is = "127.0.0.1";
  };
  "a gateway with another data folder" = {
    host = "gpu";
    module.appliance.settings.gateway.data_dir = "/root/keys";
    refuses = "data_dir = \"/root/keys\" is not writable for its unit";
  };
  "a gateway that drains too briefly" = {
    host = "gpu";
    module = engine { shutdown_timeout_s = 300; };
    refuses = "drainSec = 90 is less than an engine's shutdown_timeout_s";
  };
  "plans with a default" = {
    host = "gpu";
    module.appliance.settings = {
      plans.basic = {
        tokens_per_day = 200000;
        models = [ "qwen3-30b" ];
        price = "10 EUR per month";
      };
      default_plan = "basic";
    };
    gives = c: {
      inherit (c.appliance.settings.plans.basic) tokens_per_day price;
      plan = c.appliance.settings.default_plan;
    };
    is = {
      tokens_per_day = 200000;
      price = "10 EUR per month";
      plan = "basic";
    };
  };
  "a repository without a revision" = {
    host = "gpu";
    module.appliance.settings.models.loose.source = "Qwen/Qwen3-0.6B";
    refuses = "models.loose: a repository needs a pinned revision";
  };
  "weights in the Nix store" = {
    host = "gpu";
    module.appliance.models.store.path = "/nix/store/weights";
    refuses = "is in the Nix store, which weights would fill permanently";
  };

  "a plan with an unknown model" = {
    host = "gpu";
    module.appliance.settings.plans.basic.models = [ "qwen3-3b" ];
    invalid = "plans.basic.models: model or role 'qwen3-3b' does not exist";
  };
  "a default plan that does not exist" = {
    host = "gpu";
    module.appliance.settings.default_plan = "basic";
    invalid = "default_plan: plan 'basic' does not exist";
  };
  "a model that does not fit" = {
    host = "gpu";
    module.appliance.settings.models.qwen3-30b.weights_gib = lib.mkForce 120;
    invalid = "120.0 GiB of weights per card do not fit";
  };
  "two engines that request more than a card has" = {
    host = "gpu";
    module.imports = [
      alone
      (second { gpus = [ 0 ]; })
    ];
    invalid = "agents and second together use 184% of the card's 97887 MiB";
  };
  "a context beyond the model's" = {
    host = "gpu";
    module = engine { context = 65536; };
    invalid = "65536 tokens are more than the 40960 of qwen3-30b";
  };
  "an unknown key" = {
    host = "gpu";
    module.appliance.settings.engines.agents.concurency = 3;
    invalid = "engines.agents.concurency: unknown key; did you mean 'concurrency'?";
  };
  "a flag that vLLM no longer has" = {
    host = "gpu";
    module.appliance.settings.engines.agents.options.swap-space = 4;
    invalid = "vLLM has no swap-space";
  };
  "a role for a model without an engine" = {
    host = "gpu";
    module.appliance.settings = {
      models.other = {
        source = "/var/lib/appliance-models/other";
      };
      roles.writer.model = "other";
    };
    invalid = "no engine serves 'other'";
  };

  # Types and bounds that come from modules/schema.json.
  "more replicas than the contract allows" = {
    host = "gpu";
    module = engine { replicas = 65; };
    errors = "engines.agents.replicas' is not of type `integer between 1 and 64";
  };
  "a kind of engine that does not exist" = {
    host = "gpu";
    module.appliance.settings.engines.agents.kind = "vlm";
    errors = "engines.agents.kind' is not of type `one of";
  };
  "a revision that is a branch" = {
    host = "gpu";
    module.appliance.settings.models.qwen3-30b.revision = lib.mkForce "main";
    errors = "models.qwen3-30b.revision' is not of type";
  };
  "a card without its index" = {
    host = "gpu";
    module.appliance.settings.hosts.gpu.gpus = lib.mkForce [ { model = "RTX 5090"; } ];
    errors = "index' was accessed but has no value defined";
  };
  "a budget below zero" = {
    host = "gpu";
    module.appliance.settings.plans.basic.tokens_per_day = -5;
    invalid = "plans.basic.tokens_per_day: input should be greater than 0, not -5";
  };
  "a power limit that is not a number of watts" = {
    host = "gpu";
    module.appliance.settings.hosts.gpu.gpus = lib.mkForce [
      {
        index = 0;
        model = "RTX 5090";
        memory_mib = 32607;
        power_limit_w = "450";
      }
    ];
    errors = "power_limit_w' is not of type `null or integer between 100 and 2000";
  };
}
