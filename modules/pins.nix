# The set of versions: driver, kernel, CUDA, Python, torch, vLLM. No other file repeats them, except
# modules/wheels.json for the wheels; assertions compare the two. docs/decisions/0012-versions.md has the reasons.
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
  known = lib.concatStringsSep ", " (lib.attrNames cfg.drivers);
  lacking = lib.subtractLists (lib.attrNames (cfg.drivers.${cfg.driver} or { })) (
    lib.attrNames drivers.${default}
  );
  # Both branches have open reports of hangs of this card under load (0012-versions.md). The pinned nixpkgs builds the
  # default by itself; the other is NVIDIA's long-term branch.
  default = "595.71.05";
  drivers = {
    "580.173.02" = {
      sha256_64bit = "sha256-jY65AB4FqaimY9PV0wT+tk7yhE7hhczf2VJ4aCD0bhs=";
      openSha256 = "sha256-lhloZdf6XbaAFTZBF1DxE0Nv9VC6obY8UPf0VyfVepE=";
      settingsSha256 = "sha256-dfdu/3tnwHUfP7WoeQFNOMalMlpmUWjeMDIOnu+yi8E=";
      persistencedSha256 = "sha256-j8YM1w231X+JIP3c3TpUNurEBumEu1stVjzFGWu1JXE=";
    };
    "595.71.05" = {
      sha256_64bit = "sha256-NiA7iWC35JyKQva6H1hjzeNKBek9KyS3mK8G3YRva4I=";
      openSha256 = "sha256-Lfz71QWKM6x/jD2B22SWpUi7/og30HRlXg1kL3EWzEw=";
      settingsSha256 = "sha256-mXnf3jyvznfB3OfKd657rxv0rYHQb/dX/Riw/+N9EKU=";
      persistencedSha256 = "sha256-Z/6IvEEa/XfZ5F5qoSIPvXJLGtscYVqjFxHZaN/M2Ts=";
    };
  };
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
    driver = lib.mkOption {
      type = lib.types.str;
      inherit default;
      example = "580.173.02";
      description = "NVIDIA driver, one of `drivers`. Both branches run CUDA 13.0; change it if a card hangs under load.";
    };
    drivers = lib.mkOption {
      type = lib.types.attrsOf (lib.types.attrsOf lib.types.str);
      default = { };
      defaultText = lib.literalMD "${lib.concatStringsSep " and " (lib.attrNames drivers)}";
      example = {
        "580.173.02".openSha256 = "sha256-lhloZdf6XbaAFTZBF1DxE0Nv9VC6obY8UPf0VyfVepE=";
      };
      description = "Tested drivers: hashes of their parts, by the names of nvidiaPackages.mkDriver.";
    };
    kernel = pin "Kernel series for which the driver's modules are built." "6.18";
    cuda = pin "CUDA runtime in the wheels." "13.0";
    python = pin "Python of the engine's environment." "3.13";
    torch = pin "torch in the wheel set." "2.14.0";
    vllm = pin "vLLM in the wheel set." "0.33.0";
  };

  config = {
    appliance.pins.drivers = lib.mapAttrs (_: lib.mapAttrs (_: lib.mkDefault)) drivers;

    assertions = [
      {
        assertion = onGpu && lib.versionAtLeast cfg.cuda "13" -> lib.versionAtLeast cfg.driver "580";
        message = ''
          appliance.pins.driver = "${cfg.driver}" cannot run CUDA ${cfg.cuda}, which needs 580 or newer:
          set appliance.pins.driver to "${default}" (the default) or take a wheel set with CUDA 12.
        '';
      }
      {
        assertion = onGpu && lib.any isBlackwell cards -> lib.versionAtLeast cfg.driver "570";
        message = ''
          appliance.pins.driver = "${cfg.driver}" does not support Blackwell cards (sm_120), which need 570 or
          newer: set appliance.pins.driver to "${default}" (the default).
        '';
      }
      {
        assertion = onGpu -> cfg.drivers ? ${cfg.driver};
        message = ''
          appliance.pins.driver = "${cfg.driver}" is untested. Tested are ${known}: set it to one of them, or test it
          and add its hashes to appliance.pins.drivers.
        '';
      }
      {
        assertion = onGpu && cfg.drivers ? ${cfg.driver} -> lacking == [ ];
        message = ''
          appliance.pins.drivers."${cfg.driver}" lacks ${lib.concatStringsSep ", " lacking}: add the hashes that
          nvidiaPackages.mkDriver needs.
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
    # A plain definition, not a default: a tested driver must run. An assertion refuses a version without hashes.
    hardware.nvidia.package = lib.mkIf onGpu (
      config.boot.kernelPackages.nvidiaPackages.mkDriver (
        { version = cfg.driver; } // drivers.${default} // cfg.drivers.${cfg.driver} or { }
      )
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
