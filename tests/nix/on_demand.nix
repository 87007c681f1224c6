# An engine that the gateway starts and stops: laid over hosts/gpu.nix for what lets it.
{ appliance.settings.engines.agents.residency = "on-demand"; }
