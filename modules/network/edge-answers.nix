# What the edge says itself, and when a request goes on to another GPU host. Clients read these as they read the
# gateway's own refusals: OpenAI's and Anthropic's shape at once, with Retry-After where waiting helps.
{ config, lib, ... }:
let
  edge = config.appliance.network.edge;
  inherit (edge) gateways;
  port = toString config.appliance.settings.gateway.port;
  several = lib.length gateways > 1;
  servers =
    addresses:
    lib.genAttrs (map (address: "${address}:${port}") addresses) (_: {
      # Never left alone when it is the only one; else for a moment, so that requests do not each wait for it.
      max_fails = if several then 1 else 0;
      fail_timeout = "3s";
    });
  without = address: "gateway-not-${address}";
  say =
    status: kind: code: text:
    "return ${toString status} '${
      builtins.toJSON {
        type = "error";
        error = {
          message = text;
          type = kind;
          param = null;
          inherit code;
        };
      }
    }';";
  answer = more: {
    extraConfig = ''
      default_type application/json;
      ${more}
    '';
  };
  retryAfter = seconds: "add_header Retry-After ${toString seconds} always;";
  # For pages of the origins that the gateway allows: without these lines a browser hides the answer from them.
  # In every block that adds a header, for nginx inherits none there. An empty value adds no header.
  origins = config.appliance.settings.gateway.browser_origins;
  readable = lib.optionalString (origins != [ ]) ''
    add_header Access-Control-Allow-Origin $allowed_origin always;
    add_header Access-Control-Expose-Headers $exposed_headers always;
    add_header Vary Origin always;
  '';
in
{
  options.appliance.network.edge.proxyConfig = lib.mkOption {
    type = lib.types.lines;
    internal = true;
    readOnly = true;
    description = "How a request is handed to a GPU host, in every location that does so.";
    default = ''
      proxy_http_version 1.1;
      # A connection per request: one kept open through a line that died would be asked first, and its silence is
      # noticed after minutes. Nor can what one client sends ever be read as the beginning of another's request.
      proxy_set_header Connection close;
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto https;
      # A token goes out when it comes in.
      proxy_buffering off;
      proxy_cache off;
      gzip off;
      # Within two seconds the client knows, and a first SYN may be lost (TCP repeats it after one).
      proxy_connect_timeout 1500ms;
      proxy_read_timeout ${toString edge.answerTimeoutSec}s;
      proxy_send_timeout 60s;
      # Only a request that never reached a gateway goes to the next one: a repeated generation is paid for
      # twice. (nginx holds a POST that was sent for begun, unless told `non_idempotent`.)
      proxy_next_upstream error timeout;
      proxy_next_upstream_tries 2;
      recursive_error_pages on;
      error_page 502 504 = @broken;
    '';
  };

  config.services.nginx = lib.mkIf edge.enable {
    upstreams = {
      gateway = {
        servers = servers gateways;
        # The same Idempotency-Key finds the same GPU host, whose answer it repeats; others are spread.
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

    commonHttpConfig = ''
      # Whether a gateway was reached: without a connection there is no time it took.
      map $upstream_connect_time $reached {
        default 0;
        "~[0-9]" 1;
      }
    ''
    + lib.optionalString (origins != [ ]) ''
      map $http_origin $allowed_origin {
      ${
        if origins == [ "*" ] then
          "  \"\" \"\";\n  default *;"
        else
          lib.concatMapStringsSep "\n" (origin: "  ${builtins.toJSON origin} $http_origin;") origins
      }
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
      # The last one asked is the one that refused.
      map $upstream_addr $elsewhere {
        default gateway;
      ${
        lib.concatMapStrings (
          address: "  \"~${lib.replaceStrings [ "." ] [ "\\." ] address}:${port}$\" ${without address};\n"
        ) gateways
      }}
    '';

    virtualHosts.${edge.domain}.locations = {
      "@broken" = answer ''
        # Nothing was sent, so nothing runs: ask again. Once it was sent, a generation may have begun.
        if ($reached = 0) {
          ${retryAfter 2}
          ${readable}
          ${say 503 "server_error" "gateway_unreachable"
            "The GPU host cannot be reached; try again shortly"
          }
        }
        ${readable}
        ${say 502 "server_error" "gateway_failed"
          "The GPU host broke off; a repeated request may run twice, unless it bears an Idempotency-Key"
        }
      '';
      "@flooded" = answer ''
        ${retryAfter 1}
        ${readable}
        ${say 429 "rate_limit_error" "rate_limit_exceeded"
          "Too many requests at once from this key or address; slow down"
        }
      '';
      "@too_large" = answer ''
        ${readable}
        ${say 413 "invalid_request_error" "request_too_large"
          "The body is over the limit of ${toString config.appliance.settings.gateway.max_body_bytes} bytes"
        }
      '';
    }
    // lib.optionalAttrs several {
      # A gateway that says 503 did not begin. Here, not by proxy_next_upstream: that would need
      # `non_idempotent`, and then a POST that broke off in the middle were repeated, too.
      "@elsewhere" = {
        proxyPass = "http://$elsewhere";
        extraConfig = edge.proxyConfig;
      };
    };
  };
}
