# What one client may ask of the edge. Per key, so that users behind one address do not share a budget, and
# per address, since a stranger can invent a new key for every request.
{ config, lib, ... }:
let
  edge = config.appliance.network.edge;
  cfg = edge.limits;
  inherit (lib) mkOption types;
  figure = default: description: mkOption { type = types.ints.positive; inherit default description; example = default; };
in
{
  options.appliance.network.edge.limits = {
    perKeyPerSecond = figure 20 "Requests per second of one key.";
    perAddressPerSecond = figure 40 "Requests per second of one address.";
    perKeyConnections = figure 64 "Requests of one key at once.";
    perAddressConnections = figure 128 "Requests of one address at once.";
    locationConfig = mkOption {
      type = types.lines;
      internal = true;
      readOnly = true;
      description = "What the API's location says.";
      default = ''
        limit_req zone=per_key burst=${toString (2 * cfg.perKeyPerSecond)} nodelay;
        limit_req zone=per_address burst=${toString (2 * cfg.perAddressPerSecond)} nodelay;
        limit_conn key_conn ${toString cfg.perKeyConnections};
        limit_conn address_conn ${toString cfg.perAddressConnections};
        limit_req_status 429;
        limit_conn_status 429;
      '';
    };
  };

  config.services.nginx.commonHttpConfig = lib.mkIf edge.enable ''
    # No key: not counted per key, only per address.
    limit_req_zone $http_authorization zone=per_key:10m rate=${toString cfg.perKeyPerSecond}r/s;
    limit_req_zone $binary_remote_addr zone=per_address:10m rate=${toString cfg.perAddressPerSecond}r/s;
    limit_conn_zone $http_authorization zone=key_conn:10m;
    limit_conn_zone $binary_remote_addr zone=address_conn:10m;
    # One byte a second holds a connection for ever, unless somebody counts.
    client_header_timeout 10s;
    client_body_timeout 15s;
    send_timeout 30s;
    reset_timedout_connection on;
    # One spelling per path: `//v1` is not `/v1`, here as in the gateway.
    merge_slashes off;
    client_header_buffer_size 2k;
    large_client_header_buffers 4 8k;
    # The gateway's own limit, refused here already.
    client_max_body_size ${toString config.appliance.settings.gateway.max_body_bytes};
  '';
}
