# Speech to text on a card by Vulkan: whisper.cpp's server on loopback. The site has it as an engine of kind http at
# 127.0.0.1; this module starts it, since the appliance starts no server of that kind.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; }) hardened renderAccess;
  inherit (config) appliance;
  cfg = appliance.whisper;
  inherit (lib) mkOption types;
  verifies =
    appliance.models.lock != null
    && cfg.model != null
    && lib.hasPrefix "${appliance.models.store.path}/" cfg.model;
  served = lib.filterAttrs (
    _: e: e.kind == "http" && e.port == cfg.port && (e.address or null) == "127.0.0.1"
  ) appliance.myEngines;
in
{
  options.appliance.whisper = {
    enable = lib.mkEnableOption "whisper.cpp's server: speech to text on a card, by Vulkan";
    package = mkOption {
      type = types.package;
      default = pkgs.whisper-cpp.override { vulkanSupport = true; };
      defaultText = lib.literalExpression "pkgs.whisper-cpp.override { vulkanSupport = true; }";
      example = lib.literalExpression "pkgs.whisper-cpp-vulkan";
      description = "Package with whisper-server.";
    };
    model = mkOption {
      type = types.nullOr (types.strMatching "/[!-~]+");
      default = null;
      example = "/var/lib/appliance-models/hub/models--ggerganov--whisper.cpp/snapshots/5359861c739e955e79d9a303bcbc70fb988958b1/ggml-large-v3-turbo.bin";
      description = "File of the weights, in ggml's format.";
    };
    card = mkOption {
      type = types.ints.between 0 63;
      default = 0;
      example = 0;
      description = "Index of the card, as Vulkan counts them.";
    };
    port = mkOption {
      type = types.port;
      default = 8112;
      example = 8112;
      description = "Port on loopback; the engine of kind http in `settings.engines` has the same.";
    };
    language = mkOption {
      type = types.strMatching "auto|[a-z]{2,3}";
      default = "auto";
      example = "ru";
      description = "Language of the speech, if a request names none; `auto` detects it.";
    };
    threads = mkOption {
      type = types.ints.between 1 64;
      default = 4;
      example = 4;
      description = "Threads of the part that the CPU computes.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.model != null;
        message = "appliance.whisper.model is missing: name the file of the weights, such as ggml-large-v3-turbo.bin in the model store.";
      }
      {
        assertion = served != { };
        message = "appliance.whisper.enable is set, but no engine of this host has kind = \"http\", address = \"127.0.0.1\" and port = ${toString cfg.port}: add it to appliance.settings.engines, or no client can reach the server.";
      }
    ];
    # The drivers of Vulkan, under /run/opengl-driver.
    hardware.graphics.enable = true;
    systemd.services.appliance-whisper = {
      description = "Speech to text: whisper.cpp";
      wantedBy = [ "multi-user.target" ];
      after = [ "appliance-models-verify.service" ];
      # Not required: a damaged model stops its own server only, for each start compares its file with the record.
      wants = lib.optional (appliance.models.lock != null) "appliance-models-verify.service";
      unitConfig = {
        RequiresMountsFor = [ appliance.models.store.path ];
        # A model that does not fit fails each time; a restart loop would hide it.
        StartLimitIntervalSec = "1h";
        StartLimitBurst = 5;
      };
      environment = {
        GGML_VK_VISIBLE_DEVICES = toString cfg.card;
        MESA_SHADER_CACHE_DIR = "/var/cache/appliance-whisper/mesa";
      };
      serviceConfig =
        hardened
        // renderAccess
        // {
          Type = "exec";
          DynamicUser = true;
          ExecStartPre = lib.mkIf verifies (
            lib.escapeShellArgs [
              (lib.getExe appliance.package)
              "models"
              "verify"
              "--changed"
              "--lock"
              "/etc/appliance/models.lock"
              "--store"
              appliance.models.store.path
              cfg.model
            ]
          );
          # With --convert, ffmpeg decodes what browsers and Telegram record (WebM, Ogg with Opus).
          ExecStart = lib.escapeShellArgs [
            (lib.getExe' cfg.package "whisper-server")
            "--host"
            "127.0.0.1"
            "--port"
            (toString cfg.port)
            "--inference-path"
            "/v1/audio/transcriptions"
            "--model"
            cfg.model
            "--language"
            cfg.language
            "--threads"
            (toString cfg.threads)
            "--convert"
            "--tmp-dir"
            "/tmp"
          ];
          CacheDirectory = "appliance-whisper";
          CacheDirectoryMode = "0700";
          # Its standard output has the names of the files that people send; errors have their own stream.
          StandardOutput = "null";
          Restart = "on-failure";
          RestartSec = 5;
          RestrictAddressFamilies = [
            "AF_UNIX"
            "AF_INET"
            "AF_INET6"
          ];
          IPAddressAllow = "localhost";
          # The driver of the card maps pages that it writes and executes.
          MemoryDenyWriteExecute = false;
          # The driver sets priorities of its queues, and ffmpeg those of its threads.
          SystemCallFilter = [
            "@system-service"
            "~@privileged"
          ];
          # ggml reads /proc/cpuinfo.
          ProcSubset = "all";
          LimitMEMLOCK = "infinity"; # pinned host buffers
          ReadOnlyPaths = [ "-${appliance.models.store.path}" ];
        };
    };
  };
}
