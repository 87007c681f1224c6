# What one client may ask of the edge. Per key, so that users behind one address do not share a budget, and
# per address, since a stranger can invent a new key for every request.
{ config, lib, ... }:
let
  edge = config.appliance.network.edge;
  cfg = edge.limits;
  inherit (lib) mkOption types;
  figure =
    default: description:
    mkOption {
      type = types.ints.positive;
      inherit default description;
      example = default;
    };
in
{
  options.appliance.network.edge.limits = {
    perKeyPerSecond = figure 20 "Requests per second of one key.";
    perAddressPerSecond = figure 40 "Requests per second of one address.";
    perKeyConnections = figure 64 "Requests of one key at once.";
    perAddressConnections = figure 128 "Requests of one address at once.";
    perAddressTcpConnections = figure 256 "TCP connections of one address at once, held by the firewall: those that say nothing yet are no requests.";
    connections = figure 8192 "Connections of one nginx worker, to clients and GPU hosts together: a stream takes two.";
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
        # A status of the edge's own, so that a 429 of the gateway passes with its Retry-After.
        limit_req_status 590;
        limit_conn_status 590;
        error_page 590 = @flooded;
        error_page 413 = @too_large;
      '';
    };
  };

  config.services.nginx = lib.mkIf edge.enable {
    # nginx's default of 512 is less than what 200 streams and one idle visitor need.
    eventsConfig = "worker_connections ${toString cfg.connections};";
    appendConfig = ''
      worker_processes auto;
      worker_rlimit_nofile ${toString (2 * cfg.connections)};
    '';
    # The gateway's own limit, refused here already. Not in commonHttpConfig: NixOS writes the line itself, and
    # nginx takes it once.
    clientMaxBodySize = toString config.appliance.settings.gateway.max_body_bytes;
    commonHttpConfig = ''
      # Whose key: the gateway takes it in either header.
      map $http_authorization $client_key {
        "" $http_x_api_key;
        default $http_authorization;
      }
      # No key: not counted per key, only per address.
      limit_req_zone $client_key zone=per_key:10m rate=${toString cfg.perKeyPerSecond}r/s;
      limit_req_zone $binary_remote_addr zone=per_address:10m rate=${toString cfg.perAddressPerSecond}r/s;
      limit_conn_zone $client_key zone=key_conn:10m;
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
    '';
  };
}
