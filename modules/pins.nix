# The tested set of versions: driver, kernel, CUDA, Python, torch, vLLM. No other file repeats them, except
# modules/wheels.json for the wheels; assertions compare the two.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.appliance.pins;
  wheels = lib.importJSON ./wheels.json;
  locked = name: (lib.findFirst (w: w.name == name) { version = "none"; } wheels).version;
  major = version: lib.head (lib.splitVersion version);
  isBlackwell = gpu: lib.hasInfix "Blackwell" gpu.model || lib.hasInfix "RTX 50" gpu.model;
  cards = lib.concatMap (host: host.gpus) (lib.attrValues config.appliance.settings.hosts);
  onGpu = config.appliance.gpu.enable;
  pin =
    description: default:
    lib.mkOption {
      type = lib.types.str;
      inherit default description;
      example = default;
    };
in
{
  options.appliance.pins = {
    driver = pin "NVIDIA driver, tested with the kernel below." "595.71.05";
    driverHashes = lib.mkOption {
      type = lib.types.attrsOf lib.types.str;
      default = {
        sha256_64bit = "sha256-NiA7iWC35JyKQva6H1hjzeNKBek9KyS3mK8G3YRva4I=";
        openSha256 = "sha256-Lfz71QWKM6x/jD2B22SWpUi7/og30HRlXg1kL3EWzEw=";
        settingsSha256 = "sha256-mXnf3jyvznfB3OfKd657rxv0rYHQb/dX/Riw/+N9EKU=";
        persistencedSha256 = "sha256-Z/6IvEEa/XfZ5F5qoSIPvXJLGtscYVqjFxHZaN/M2Ts=";
      };
      example = {
        openSha256 = "sha256-Lfz71QWKM6x/jD2B22SWpUi7/og30HRlXg1kL3EWzEw=";
      };
      description = "Hashes of the driver's parts, by the names of nvidiaPackages.mkDriver. They change with `driver`.";
    };
    kernel = pin "Kernel series for which the driver's modules are built." "6.18";
    cuda = pin "CUDA runtime in the wheels." "13.0";
    python = pin "Python of the engine's environment." "3.13";
    torch = pin "torch in the wheel set." "2.13.0";
    vllm = pin "vLLM in the wheel set." "0.32.0";
  };

  config = {
    assertions = [
      {
        assertion = onGpu && lib.versionAtLeast cfg.cuda "13" -> lib.versionAtLeast cfg.driver "580";
        message = ''
          appliance.pins.driver = "${cfg.driver}" cannot run CUDA ${cfg.cuda}, which needs 580 or newer:
          set appliance.pins.driver to "595.71.05" (the tested one) or take a wheel set with CUDA 12.
        '';
      }
      {
        assertion = onGpu && lib.any isBlackwell cards -> lib.versionAtLeast cfg.driver "570";
        message = ''
          appliance.pins.driver = "${cfg.driver}" does not support Blackwell cards (sm_120), which need 570 or
          newer: set appliance.pins.driver to "595.71.05" (the tested one).
        '';
      }
      {
        assertion = onGpu && lib.any isBlackwell cards -> config.hardware.nvidia.open == true;
        message = ''
          hardware.nvidia.open must be true: Blackwell cards work with the open kernel modules only.
          Remove the line that sets it to false.
        '';
      }
      {
        assertion = locked "vllm" == cfg.vllm && locked "torch" == cfg.torch;
        message = ''
          appliance.pins has vllm ${cfg.vllm} and torch ${cfg.torch}, but modules/wheels.json has
          ${locked "vllm"} and ${locked "torch"}: run `make lock-engine`, or set the pins to the locked versions.
        '';
      }
      {
        assertion = lib.hasPrefix "${cfg.cuda}." (locked "nvidia-cuda-runtime");
        message = ''
          appliance.pins.cuda = "${cfg.cuda}", but the locked nvidia-cuda-runtime is
          ${locked "nvidia-cuda-runtime"}: set appliance.pins.cuda to the first two numbers of it.
        '';
      }
      {
        assertion = lib.all (
          w:
          !(lib.hasPrefix "cp3" w.python && w.abi == w.python)
          || w.python == "cp${lib.replaceStrings [ "." ] [ "" ] cfg.python}"
        ) wheels;
        message = ''
          appliance.pins.python = "${cfg.python}", but modules/wheels.json was locked for another Python: run
          `make lock-engine` with that Python, or set appliance.pins.python back.
        '';
      }
    ];

    boot.kernelPackages =
      lib.mkIf onGpu
        pkgs."linuxPackages_${lib.replaceStrings [ "." ] [ "_" ] cfg.kernel}";
    # A plain definition, not a default: the tested driver must run.
    hardware.nvidia.package = lib.mkIf onGpu (
      config.boot.kernelPackages.nvidiaPackages.mkDriver ({ version = cfg.driver; } // cfg.driverHashes)
    );
    # A live switch refuses a change of any of these; use `nixos-rebuild boot` and a reboot.
    # https://github.com/NixOS/nixpkgs/pull/473282
    system.switch.inhibitors = lib.mkIf onGpu {
      nvidia-driver = cfg.driver;
      cuda-major = major cfg.cuda;
      kernel-series = cfg.kernel;
    };
  };
}
