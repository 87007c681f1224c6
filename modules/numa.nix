# Keeps an engine's threads and memory on the NUMA node of its cards. On a host whose cards all sit on one
# node there is nothing to gain, so it is off there.
{ config, lib, ... }:
let
  cfg = config.appliance;
  nodeOf =
    index:
    (lib.findFirst (card: card.index == index) { numa_node = null; } cfg.thisHost.gpus).numa_node
      or null;
  nodes = cards: lib.unique (lib.filter (node: node != null) (map nodeOf cards));
  cardsOf =
    engine: replica: lib.sublist (replica * engine.tensor_parallel) engine.tensor_parallel engine.gpus;
  spans =
    engine:
    lib.any (replica: lib.length (nodes (cardsOf engine replica)) > 1) (
      lib.range 0 (engine.replicas - 1)
    );
in
{
  options.appliance.numa = {
    pin = lib.mkOption {
      type = lib.types.bool;
      default = lib.length (nodes (map (card: card.index) cfg.thisHost.gpus)) > 1;
      defaultText = lib.literalMD "whether this host's cards sit on more than one node";
      example = false;
      description = "Whether to keep each engine on the NUMA node of its cards.";
    };
    serviceConfigFor = lib.mkOption {
      type = lib.types.functionTo (lib.types.functionTo lib.types.raw);
      internal = true;
      readOnly = true;
      description = "systemd settings for replica i of an engine.";
      default =
        engine: replica:
        let
          mine = nodes (cardsOf engine replica);
        in
        lib.optionalAttrs (cfg.numa.pin && lib.length mine == 1) {
          # Preferred, not bound: a node that is full shall slow an engine down, never kill it.
          NUMAPolicy = "preferred";
          NUMAMask = toString (lib.head mine);
          CPUAffinity = "numa";
        };
    };
  };

  config.assertions = [
    {
      assertion =
        cfg.engines.enable && cfg.numa.pin
        -> lib.all (e: !(spans e) || e.kind != "vllm" || e.options.numa-bind or false) (
          lib.attrValues cfg.myEngines
        );
      message =
        let
          culprits = lib.attrNames (
            lib.filterAttrs (_: e: spans e && e.kind == "vllm" && !(e.options.numa-bind or false)) cfg.myEngines
          );
        in
        ''
          appliance.settings.engines.${lib.concatStringsSep ", " culprits}: cards on several NUMA nodes, which systemd
          cannot pin: set options.numa-bind = true (vLLM binds each worker), or appliance.numa.pin = false.
        '';
    }
  ];
}
