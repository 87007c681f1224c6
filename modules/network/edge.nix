# The public side: nginx with TLS and one host name in front of the gateways. It limits the requests of a client and
# passes the paths of the API through byte for byte. If a GPU host refuses a request, nginx sends it to another one.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.appliance.network.edge;
  inherit (cfg) gateways limits;
  inherit (lib) mkOption types;
  inherit (config.appliance.settings.gateway) browser_origins max_audio_bytes max_body_bytes;
  inherit ((lib.importJSON ../schema.json)."$defs".Assistant.properties) max_file_bytes;
  # The gateway's own limit of an upload: a file of `assistant.max_file_bytes` and its form.
  maxUpload =
    (config.appliance.settings.assistant.max_file_bytes or max_file_bytes.default) + 1048576;
  # The same of a form with audio.
  maxAudio = max_audio_bytes + 1048576;
  port = toString config.appliance.settings.gateway.port;
  nginx = config.services.nginx.package;
  several = lib.length gateways > 1;

  figure =
    default: description:
    mkOption {
      type = types.ints.positive;
      inherit default description;
      example = default;
    };

  servers =
    addresses:
    lib.genAttrs (map (address: "${address}:${port}") addresses) (_: {
      # A single gateway is never marked as failed. One of several is for 3 s, so that not every request waits for it.
      max_fails = if several then 1 else 0;
      fail_timeout = "3s";
    });
  without = address: "gateway-not-${address}";

  # How a request is passed to a GPU host, in every location that does so.
  proxyConfig = ''
    proxy_http_version 1.1;
    # A connection per request. nginx would use a connection kept open over a dead line first, and would notice
    # only after minutes. It also prevents one client's bytes from becoming the start of another client's request.
    proxy_set_header Connection close;
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto https;
    # Each token is sent as soon as it arrives.
    proxy_buffering off;
    proxy_cache off;
    gzip off;
    # The client gets an error within two seconds even if the first SYN is lost: TCP repeats it after one second.
    proxy_connect_timeout 1500ms;
    proxy_read_timeout ${toString cfg.answerTimeoutSec}s;
    proxy_send_timeout 60s;
    # Only a request that never reached a gateway moves to the next one: a repeated generation costs twice.
    # (Without `non_idempotent`, nginx does not repeat a POST that it has sent.)
    proxy_next_upstream error timeout;
    proxy_next_upstream_tries 2;
    recursive_error_pages on;
    error_page 502 504 = @broken;
  '';

  # The limits, in every location that clients reach.
  limitConfig = ''
    limit_req zone=per_key burst=${toString (2 * limits.perKeyPerSecond)} nodelay;
    limit_req zone=per_address burst=${toString (2 * limits.perAddressPerSecond)} nodelay;
    limit_conn key_conn ${toString limits.perKeyConnections};
    limit_conn address_conn ${toString limits.perAddressConnections};
    # The edge's limits have a status of their own, so that a 429 of the gateway passes with its Retry-After.
    limit_req_status 590;
    limit_conn_status 590;
    error_page 590 = @flooded;
  '';

  # OPTIONS and the headers of browsers pass like all others: the gateway responds to them.
  toGateway = passed ''
    error_page 413 = @too_large;
  '';
  passed = own: {
    proxyPass = "http://gateway";
    extraConfig =
      proxyConfig
      + limitConfig
      + own
      + lib.optionalString several ''
        proxy_intercept_errors on;
        error_page 503 = @elsewhere;
      '';
  };

  # Audio passes while it arrives: the gateway checks the key by the head, and bounds the memory of all uploads. A
  # request whose body has begun cannot move to another gateway.
  toGatewayWithAudio = {
    proxyPass = "http://gateway";
    extraConfig =
      proxyConfig
      + limitConfig
      + ''
        limit_conn upload_conn ${toString limits.perAddressUploads};
        client_max_body_size ${toString maxAudio};
        proxy_request_buffering off;
        error_page 413 = @audio_too_large;
      '';
  };

  # Responses of the edge itself. They look like the gateway's: the shape of OpenAI and Anthropic at once, with
  # Retry-After when a retry helps.
  response = directives: {
    extraConfig = ''
      default_type application/json;
      ${directives}
    '';
  };
  error =
    {
      status,
      type,
      code,
      message,
    }:
    let
      body = builtins.toJSON {
        type = "error";
        error = {
          inherit code message type;
          param = null;
        };
      };
    in
    "return ${toString status} '${body}';";
  retryAfter = seconds: "add_header Retry-After ${toString seconds} always;";
  # A browser hides a response from pages of the allowed origins unless it has these headers. Each block that adds a
  # header needs them, since nginx inherits none there. An empty value adds no header.
  corsHeaders = lib.optionalString (browser_origins != [ ]) ''
    add_header Access-Control-Allow-Origin $allowed_origin always;
    add_header Access-Control-Expose-Headers $exposed_headers always;
    add_header Vary Origin always;
  '';
  allowedOrigins =
    if browser_origins == [ "*" ] then
      "  \"\" \"\";\n  default *;"
    else
      lib.concatMapStringsSep "\n" (origin: "  ${builtins.toJSON origin} $http_origin;") browser_origins;
in
{
  options.appliance.network.edge = {
    enable = lib.mkEnableOption "the public edge: nginx with TLS in front of the gateway";
    domain = mkOption {
      type = types.strMatching "([a-z0-9-]+\\.)+[a-z]{2,}";
      example = "llm.example.org";
      description = "Public host name. Requests for any other name are refused.";
    };
    acmeEmail = mkOption {
      type = types.strMatching "[^@ ]+@[^@ ]+";
      example = "admin@example.org";
      description = "Address that the certificate authority writes to.";
    };
    gateways = mkOption {
      type = types.listOf (
        types.strMatching "10\\..*|127\\..*|192\\.168\\..*|172\\.(1[6-9]|2[0-9]|3[01])\\..*"
      );
      default = [ "10.77.0.1" ];
      example = [
        "10.77.0.1"
        "10.77.0.3"
      ];
      description = "Tunnel addresses of the GPU hosts.";
    };
    answerTimeoutSec = mkOption {
      type = types.ints.positive;
      default = 620;
      example = 900;
      description = ''
        Seconds without a byte from the gateway after which the edge times out. It exceeds the gateway's own
        first_byte_timeout_s, so that the gateway reports the reason.
      '';
    };
    # Limits per key keep users behind one address apart. Limits per address also count: a stranger can invent a new
    # key for every request.
    limits = {
      perKeyPerSecond = figure 20 "Requests per second of one key.";
      perAddressPerSecond = figure 40 "Requests per second of one address.";
      perKeyConnections = figure 64 "Requests of one key at once.";
      perAddressConnections = figure 128 "Requests of one address at once.";
      perAddressUploads = figure 8 "Uploads of files and audio of one address at once: the edge stores those of `/v1/files` on its disk.";
      perAddressTcpConnections = figure 256 "TCP connections of one address at once, enforced by the firewall: nginx does not count a connection without a request.";
      connections = figure 8192 "Connections of one nginx worker, to clients and GPU hosts together: a stream uses two.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = gateways != [ ];
        message = "appliance.network.edge.gateways is empty: name the tunnel address of the GPU host, such as 10.77.0.1.";
      }
      {
        assertion =
          config.services.nginx.virtualHosts.${cfg.domain}.http2 -> lib.versionAtLeast nginx.version "1.30.7";
        message = "services.nginx.virtualHosts.\"${cfg.domain}\".http2 is on, but nginx ${nginx.version} has memory corruption there (CVE-2026-123007, fixed in 1.30.7): remove the line, or set services.nginx.package to 1.30.7 or newer.";
      }
    ];

    security.acme = {
      acceptTerms = lib.mkDefault true;
      defaults.email = lib.mkDefault cfg.acmeEmail;
    };
    services.nginx = {
      enable = true;
      package = lib.mkDefault pkgs.nginx;
      serverTokens = lib.mkDefault false;
      recommendedTlsSettings = lib.mkDefault true;

      # nginx's default of 512 is less than 200 streams and one idle visitor need.
      eventsConfig = "worker_connections ${toString limits.connections};";
      appendConfig = ''
        worker_processes auto;
        worker_rlimit_nofile ${toString (2 * limits.connections)};
      '';
      # The gateway's own limit, enforced before the tunnel. Not in commonHttpConfig: NixOS writes the directive
      # itself, and nginx accepts it once.
      clientMaxBodySize = toString max_body_bytes;
      commonHttpConfig = ''
        # The client's key: the gateway accepts it in either header, and the cookie of the page counts as a whole.
        map $http_cookie $session_key {
          "~__Host-session=(?<session_value>v1\.[0-9a-f.]+)" $session_value;
          default "";
        }
        map $http_x_api_key $other_key {
          "" $session_key;
          default $http_x_api_key;
        }
        map $http_authorization $client_key {
          "" $other_key;
          default $http_authorization;
        }
        # A request without a key counts for its address only.
        limit_req_zone $client_key zone=per_key:10m rate=${toString limits.perKeyPerSecond}r/s;
        limit_req_zone $binary_remote_addr zone=per_address:10m rate=${toString limits.perAddressPerSecond}r/s;
        limit_conn_zone $client_key zone=key_conn:10m;
        limit_conn_zone $binary_remote_addr zone=address_conn:10m;
        limit_conn_zone $binary_remote_addr zone=upload_conn:10m;
        # Log-ins of the page, in addition to the limits of requests.
        limit_req_zone $binary_remote_addr zone=login:10m rate=20r/m;
        # Without timeouts, one byte a second would hold a connection for ever.
        client_header_timeout 10s;
        client_body_timeout 15s;
        send_timeout 30s;
        reset_timedout_connection on;
        # One spelling per path: `//v1` is not `/v1`, here as in the gateway.
        merge_slashes off;
        client_header_buffer_size 2k;
        large_client_header_buffers 4 8k;
        # Whether the request reached a gateway: without a connection there is no connect time.
        map $upstream_connect_time $reached {
          default 0;
          "~[0-9]" 1;
        }
      ''
      + lib.optionalString (browser_origins != [ ]) ''
        map $http_origin $allowed_origin {
        ${allowedOrigins}
        }
        map $allowed_origin $exposed_headers {
          "" "";
          default retry-after;
        }
      ''
      + lib.optionalString several ''
        map $http_idempotency_key $spread {
          "" $request_id;
          default $client_key$http_idempotency_key;
        }
        # The last address in the list is the gateway that refused.
        map $upstream_addr $elsewhere {
          default gateway;
        ${
          lib.concatMapStrings (
            address: "  \"~${lib.replaceStrings [ "." ] [ "\\." ] address}:${port}$\" ${without address};\n"
          ) gateways
        }}
      '';

      upstreams = {
        gateway = {
          servers = servers gateways;
          # Requests with the same Idempotency-Key reach the same GPU host, which repeats its response; the others
          # are spread.
          extraConfig = lib.optionalString several "hash $spread consistent;";
        };
      }
      // lib.optionalAttrs several (
        lib.listToAttrs (
          map (address: {
            name = without address;
            value.servers = servers (lib.remove address gateways);
          }) gateways
        )
      );

      virtualHosts = {
        # A client with another host name gets neither a certificate nor a response.
        "_" = {
          default = true;
          rejectSSL = true;
          locations."/".return = "444";
        };
        ${cfg.domain} = {
          forceSSL = true;
          enableACME = true;
          # HTTP/2 corrupts memory before nginx 1.30.7 (CVE-2026-123007). SSE does not need it.
          http2 = lib.mkDefault (lib.versionAtLeast nginx.version "1.30.7");
          locations = {
            "/".return = "404";
            "/v1/" = toGateway;
            # The chat page, its static files, and its log-in.
            "= /" = toGateway;
            "/page/" = toGateway;
            "= /session" = passed ''
              limit_req zone=login burst=20 nodelay;
              client_max_body_size 4k;
              error_page 413 = @too_large;
            '';
            # vLLM has these two outside /v1, and so has the gateway.
            "= /tokenize" = toGateway;
            "= /detokenize" = toGateway;
            # Files are larger than requests, and nginx stores them on its disk before the gateway checks the key.
            # Without a buffer, a refused request could not move to another gateway. So an address has few at once.
            "= /v1/files" = passed ''
              limit_conn upload_conn ${toString limits.perAddressUploads};
              client_max_body_size ${toString maxUpload};
              error_page 413 = @file_too_large;
            '';
            "= /v1/audio/transcriptions" = toGatewayWithAudio;
            "= /v1/audio/translations" = toGatewayWithAudio;
            "@broken" = response ''
              # The edge sent nothing, so nothing runs and a retry is safe. Otherwise a generation may have begun.
              if ($reached = 0) {
                ${retryAfter 2}
                ${corsHeaders}
                ${error {
                  status = 503;
                  type = "server_error";
                  code = "gateway_unreachable";
                  message = "The GPU host cannot be reached; try again shortly";
                }}
              }
              ${corsHeaders}
              ${error {
                status = 502;
                type = "server_error";
                code = "gateway_failed";
                message = "The GPU host closed the connection; a repeated request may run twice, unless it has an Idempotency-Key";
              }}
            '';
            "@flooded" = response ''
              ${retryAfter 1}
              ${corsHeaders}
              ${error {
                status = 429;
                type = "rate_limit_error";
                code = "rate_limit_exceeded";
                message = "Too many requests at once from this key or address; slow down";
              }}
            '';
            "@too_large" = response ''
              ${corsHeaders}
              ${error {
                status = 413;
                type = "invalid_request_error";
                code = "request_too_large";
                message = "The body is over the limit of ${toString max_body_bytes} bytes";
              }}
            '';
            "@audio_too_large" = response ''
              ${corsHeaders}
              ${error {
                status = 413;
                type = "invalid_request_error";
                code = "request_too_large";
                message = "The audio is over the limit of ${toString maxAudio} bytes";
              }}
            '';
            "@file_too_large" = response ''
              ${corsHeaders}
              ${error {
                status = 413;
                type = "invalid_request_error";
                code = "request_too_large";
                message = "The upload is over the limit of ${toString maxUpload} bytes";
              }}
            '';
          }
          // lib.optionalAttrs several {
            # A gateway that returns 503 did not begin. proxy_next_upstream would need `non_idempotent` for this, and
            # would then also repeat a POST that failed midway.
            "@elsewhere" = {
              proxyPass = "http://$elsewhere";
              extraConfig = proxyConfig;
            };
          };
        };
      };
    };
  };
}
