# The public side: TLS, one host name, the API's paths, and bytes passed through as they come.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.appliance.network.edge;
  inherit (lib) mkOption types;
  nginx = config.services.nginx.package;
  # OPTIONS and the headers of browsers pass like everything else: the gateway answers them.
  toGateway = {
    proxyPass = "http://gateway";
    extraConfig =
      cfg.proxyConfig
      + cfg.limits.locationConfig
      + lib.optionalString (lib.length cfg.gateways > 1) ''
        proxy_intercept_errors on;
        error_page 503 = @elsewhere;
      '';
  };
in
{
  options.appliance.network.edge = {
    enable = lib.mkEnableOption "the public edge: nginx with TLS before the gateway";
    domain = mkOption {
      type = types.strMatching "([a-z0-9-]+\\.)+[a-z]{2,}";
      example = "llm.example.org";
      description = "Public host name. Requests for any other are refused.";
    };
    acmeEmail = mkOption {
      type = types.strMatching "[^@ ]+@[^@ ]+";
      example = "admin@example.org";
      description = "Where the certificate authority writes to.";
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
      description = "Seconds of silence after which an answer is given up; above the gateway's own first_byte_timeout_s, so that the gateway says why.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.gateways != [ ];
        message = "appliance.network.edge.gateways is empty: name the tunnel address of the GPU host, such as 10.77.0.1.";
      }
      {
        assertion =
          config.services.nginx.virtualHosts.${cfg.domain}.http2 -> lib.versionAtLeast nginx.version "1.30.7";
        message = "services.nginx.virtualHosts.\"${cfg.domain}\".http2 is on, but nginx ${nginx.version} has memory corruption there (CVE-2026-123007, mended in 1.30.7): remove the line, or set services.nginx.package to a mended one.";
      }
    ];

    security.acme = {
      acceptTerms = true;
      defaults.email = cfg.acmeEmail;
    };
    services.nginx = {
      enable = true;
      package = lib.mkDefault pkgs.nginx;
      serverTokens = false;
      recommendedTlsSettings = true;
      virtualHosts = {
        # Whoever does not know the name gets no certificate and no answer.
        "_" = {
          default = true;
          rejectSSL = true;
          locations."/".return = "444";
        };
        ${cfg.domain} = {
          forceSSL = true;
          enableACME = true;
          # Memory corruption in HTTP/2 before 1.30.7 (CVE-2026-123007). SSE does not need it.
          http2 = lib.mkDefault (lib.versionAtLeast nginx.version "1.30.7");
          locations."/".return = "404";
          locations."/v1/" = toGateway;
          # vLLM has these two outside /v1, and so has the gateway.
          locations."= /tokenize" = toGateway;
          locations."= /detokenize" = toGateway;
        };
      };
    };
  };
}
