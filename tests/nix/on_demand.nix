# On top of hosts/gpu.nix: an on-demand engine, which the gateway starts and stops.
{ appliance.settings.engines.agents.residency = "on-demand"; }
