# Pages of every origin may use the service: laid over hosts/vps.nix.
{ appliance.settings.gateway.browser_origins = [ "*" ]; }
