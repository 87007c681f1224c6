# On top of hosts/vps.nix: one request per second of one key, so that a test reaches the limit on any machine.
{ appliance.network.edge.limits.perKeyPerSecond = 1; }
