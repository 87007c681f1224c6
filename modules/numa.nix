# NUMA pinning: an engine's threads and memory stay on the NUMA node of its cards. It is off on a host whose cards are
# all on one node, since it gains nothing there.
{ config, lib, ... }:
let
  cfg = config.appliance;
  inherit (import ./lib.nix { inherit lib; }) cardsOf numaNodes;
  nodes = numaNodes cfg.thisHost.gpus;
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
      defaultText = lib.literalMD "whether the cards of this host are on more than one node";
      example = false;
      description = "Whether to keep each engine on the NUMA node of its cards.";
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
