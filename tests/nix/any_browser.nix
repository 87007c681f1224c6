# On top of hosts/vps.nix: pages of every origin may use the service.
{ appliance.settings.gateway.browser_origins = [ "*" ]; }
