# Proves the machine once it is up: what the doctor sees, a token from each engine, the gateway's lock, a load of
# real requests held to the SLO. What a verdict leads to is modules/trial.nix.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; }) hardened;
  inherit (config) appliance;
  cfg = appliance.smoke;
  inherit (lib) mkOption types;
  engineUnits = map (name: "${name}.service") (
    lib.filter (lib.hasPrefix "appliance-engine-") (
      lib.attrNames (lib.filterAttrs (_: unit: unit.wantedBy != [ ]) config.systemd.services)
    )
  );
  cuda = lib.any (e: e.device == "cuda") (lib.attrValues appliance.myEngines);
  # A key for an hour, or for as long as the test may take where that is more, made by the gateway's own user and
  # handed over in the environment: it stands in no file and no argument list.
  run = pkgs.writeShellScript "appliance-smoke" ''
    set -eu
    APPLIANCE_API_KEY=$(${lib.getExe appliance.package} keys create smoke --expires-in ${toString (lib.max 3600 cfg.timeoutSec)}s --config /etc/appliance/appliance.json)
    export APPLIANCE_API_KEY
    exec ${lib.getExe appliance.package} smoke --config /etc/appliance/appliance.json --reports /var/lib/appliance/smoke${
      lib.optionalString (cfg.when == "per-generation") " --once"
    }
  '';
in
{
  options.appliance.smoke = {
    enable = lib.mkEnableOption "the smoke test after boot";
    when = mkOption {
      type = types.enum [
        "per-generation"
        "every-boot"
      ];
      default = "per-generation";
      example = "every-boot";
      description = "Whether each boot proves the machine, or only the first ones of a generation, until it has passed after a boot. A live switch is always proven.";
    };
    timeoutSec = mkOption {
      type = types.ints.positive;
      # The slowest engine's start, then the requests themselves.
      default =
        lib.foldl' lib.max 600 (lib.mapAttrsToList (_: e: e.start_timeout_s) appliance.myEngines) + 600;
      defaultText = lib.literalMD "the longest `start_timeout_s` of this host's engines, at least 600, and 600 more";
      example = 900;
      description = "Seconds after which a smoke test that has not ended has failed.";
    };
    onPass = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "tell-the-fleet.service" ];
      description = "Further units to start once it has passed.";
    };
    onFail = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "ring-the-bell.service" ];
      description = "Further units to start once it has failed.";
    };
  };

  config = lib.mkIf (cfg.enable && !appliance.trial.isRescue) {
    assertions = [
      {
        assertion = appliance.gateway.enable;
        message = "appliance.smoke.enable without appliance.gateway.enable: the smoke test asks the gateway; enable it, or switch the test off on this host.";
      }
    ];
    systemd.services.appliance-smoke = {
      description = "Smoke test of the whole service";
      # Not active after it has passed: each start of multi-user.target, so each switch, runs it anew.
      wantedBy = [ "multi-user.target" ];
      after = [
        "appliance-gateway.service"
        "appliance-trial-arrived.service"
      ]
      ++ engineUnits;
      wants = [ "appliance-gateway.service" ] ++ engineUnits;
      onSuccess = [ "appliance-trial-passed.service" ] ++ cfg.onPass;
      onFailure = [ "appliance-trial-failed.service" ] ++ cfg.onFail;
      # A test under way is not cut by a switch: its own start is what a switch asks for.
      restartIfChanged = false;
      # nvidia-smi, nft and wg, for what the doctor looks at; ip, for the first hop towards a silent peer.
      path = [
        pkgs.nftables
        pkgs.wireguard-tools
        pkgs.iproute2
      ]
      ++ lib.optional cuda config.hardware.nvidia.package;
      serviceConfig =
        hardened
        // {
          Type = "oneshot";
          User = "appliance-gateway";
          Group = "appliance-gateway";
          ExecStart = run;
          # The gateway's folder, where keys are; and where the test leaves its report.
          StateDirectory = [
            "appliance/smoke"
            "appliance-gateway"
          ];
          StateDirectoryMode = "0700";
          # Emptied by a reboot only: tells a boot from a switch.
          RuntimeDirectory = "appliance-smoke";
          RuntimeDirectoryPreserve = true;
          WorkingDirectory = "/var/lib/appliance/smoke";
          # The load generator watches its own CPU time, to say when it is the bottleneck.
          ProcSubset = "all";
          TimeoutStartSec = cfg.timeoutSec;
          # It is a client of the gateway: sockets, to this host and the tunnel's own address.
          RestrictAddressFamilies = [
            "AF_UNIX"
            "AF_INET"
            "AF_INET6"
            "AF_NETLINK"
          ];
          IPAddressAllow = [
            "localhost"
          ]
          ++ lib.optional appliance.network.wireguard.enable appliance.network.wireguard.address;
          # To read the firewall and the tunnel's handshake over netlink, which the kernel shows to this alone.
          AmbientCapabilities = "CAP_NET_ADMIN";
          CapabilityBoundingSet = "CAP_NET_ADMIN";
          PrivateUsers = false;
        }
        // lib.optionalAttrs cuda {
          # It asks the driver how the cards are.
          PrivateDevices = false;
          DeviceAllow = [
            "char-nvidia-frontend rw"
            "char-nvidia rw"
            "char-nvidia-uvm rw"
          ];
        };
    };
  };
}
