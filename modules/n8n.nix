# n8n with its secrets: workflows that call the gateway. It listens on loopback; `ssh -L` or a proxy of the owner
# reaches it. nixpkgs' module has the units; this one sets what is easy to miss.
{
  config,
  lib,
  options,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; }) secretPath;
  inherit (config) appliance;
  cfg = appliance.n8n;
  inherit (lib) mkOption types;
in
{
  options.appliance.n8n = {
    enable = lib.mkEnableOption "n8n, with task runners in units of their own";
    encryptionKeyFile = mkOption {
      type = types.nullOr secretPath;
      default = null;
      example = "/run/secrets/n8n-encryption-key";
      description = "Secret with the key that encrypts the credentials of workflows. It must exist before the first start: n8n otherwise makes a key of its own, and a restored database would be unreadable. Make it with `openssl rand -hex 32`.";
    };
    runnersTokenFile = mkOption {
      type = types.nullOr secretPath;
      default = null;
      example = "/run/secrets/n8n-runners-token";
      description = "Secret with the token by which task runners log in at n8n. Make it with `openssl rand -hex 32`.";
    };
    publicUrl = mkOption {
      type = types.nullOr (types.strMatching "https://[a-z0-9.-]+(:[0-9]{1,5})?/?");
      default = null;
      example = "https://n8n.example.org";
      description = "Address at which a proxy of yours makes n8n reachable, for webhooks; default: none, the page is at http://localhost through `ssh -L`.";
    };
    port = mkOption {
      type = types.port;
      default = 5678;
      example = 5678;
      description = "Port on loopback.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.encryptionKeyFile != null;
        message = "appliance.n8n.encryptionKeyFile is missing: n8n would make a key that no backup has; make one with `openssl rand -hex 32` and name its file.";
      }
      {
        assertion = cfg.runnersTokenFile != null;
        message = "appliance.n8n.runnersTokenFile is missing: the task runners cannot log in without it; make one with `openssl rand -hex 32` and name its file.";
      }
      {
        assertion = config.services.n8n.environment.N8N_LISTEN_ADDRESS == "127.0.0.1";
        message = "services.n8n.environment.N8N_LISTEN_ADDRESS = \"${config.services.n8n.environment.N8N_LISTEN_ADDRESS}\": leave it at 127.0.0.1, or the network reaches n8n without the proxy.";
      }
      {
        assertion = config.services.n8n.environment.N8N_RUNNERS_BROKER_LISTEN_ADDRESS == "127.0.0.1";
        message = "services.n8n.environment.N8N_RUNNERS_BROKER_LISTEN_ADDRESS = \"${config.services.n8n.environment.N8N_RUNNERS_BROKER_LISTEN_ADDRESS}\": leave it at 127.0.0.1, or the network reaches the broker of the task runners.";
      }
      {
        assertion = !config.services.n8n.openFirewall;
        message = "services.n8n.openFirewall is on: n8n listens on loopback only; turn it off.";
      }
    ];
    # n8n and the launcher of its runners have a licence that nixpkgs counts as unfree. A flake that gives a `pkgs` of its
    # own configures it itself; NixOS refuses both.
    nixpkgs.config = lib.mkIf (!options.nixpkgs.pkgs.isDefined) {
      allowUnfreePredicate =
        package:
        lib.elem (lib.getName package) [
          "n8n"
          "n8n-task-runner-launcher"
        ];
    };
    services.n8n = {
      enable = true;
      environment = {
        N8N_PORT = cfg.port;
        N8N_LISTEN_ADDRESS = lib.mkDefault "127.0.0.1";
        # It gives code to the runners, and takes their results.
        N8N_RUNNERS_BROKER_LISTEN_ADDRESS = lib.mkDefault "127.0.0.1";
        N8N_ENCRYPTION_KEY_FILE = lib.mkIf (cfg.encryptionKeyFile != null) cfg.encryptionKeyFile;
        N8N_RUNNERS_AUTH_TOKEN_FILE = cfg.runnersTokenFile;
        # Executions older than two weeks would fill the disk.
        EXECUTIONS_DATA_PRUNE = lib.mkDefault true;
        EXECUTIONS_DATA_MAX_AGE = lib.mkDefault 336;
        # A browser sends cookies with this flag to localhost and over TLS.
        N8N_SECURE_COOKIE = lib.mkDefault true;
      }
      // lib.optionalAttrs (cfg.publicUrl != null) {
        WEBHOOK_URL = cfg.publicUrl;
        N8N_EDITOR_BASE_URL = cfg.publicUrl;
        N8N_PROXY_HOPS = 1;
      };
      taskRunners.enable = cfg.runnersTokenFile != null;
    };
    # Its database and workflows. DynamicUser keeps them below /var/lib/private.
    appliance.backup.paths = lib.mkIf appliance.backup.enable (
      [ "/var/lib/private/n8n" ]
      ++ lib.optional (cfg.encryptionKeyFile != null) cfg.encryptionKeyFile
    );
  };
}
