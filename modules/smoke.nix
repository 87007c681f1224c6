# The smoke test after boot: the doctor's checks, a token from each engine, the gateway's authorisation, and a load of
# real requests against the SLO. modules/trial.nix acts on its verdict.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; }) cardAccess hardened;
  inherit (config) appliance;
  cfg = appliance.smoke;
  inherit (lib) mkOption types;
  engineUnits = map (name: "${name}.service") (
    lib.filter (lib.hasPrefix "appliance-engine-") (
      lib.attrNames (lib.filterAttrs (_: unit: unit.wantedBy != [ ]) config.systemd.services)
    )
  );
  cuda = lib.any (e: e.device == "cuda") (lib.attrValues appliance.myEngines);
  # A key for one hour, or for the timeout of the test if that is longer. The gateway's user makes it, and the test gets
  # it in the environment, so that no file and no argument list contains it.
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
      description = "`every-boot` runs the test at each boot; `per-generation` runs it at each boot of a generation until it has passed after one. It always runs after a live switch.";
    };
    timeoutSec = mkOption {
      type = types.ints.positive;
      # The start of the slowest engine, then the requests.
      default =
        lib.foldl' lib.max 600 (lib.mapAttrsToList (_: e: e.start_timeout_s) appliance.myEngines) + 600;
      defaultText = lib.literalMD "the longest `start_timeout_s` of the engines of this host, at least 600, plus 600";
      example = 900;
      description = "Seconds after which a running smoke test counts as failed.";
    };
    onPass = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "notify-fleet.service" ];
      description = "More units to start after it passed.";
    };
    onFail = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "ring-the-bell.service" ];
      description = "More units to start after it failed.";
    };
  };

  config = lib.mkIf (cfg.enable && !appliance.trial.isRescue) {
    assertions = [
      {
        assertion = appliance.gateway.enable;
        message = "appliance.smoke.enable without appliance.gateway.enable: the smoke test sends requests to the gateway; enable it, or disable the test on this host.";
      }
    ];
    systemd.services.appliance-smoke = {
      description = "Smoke test of the whole service";
      # It is inactive after it passed, so each start of multi-user.target, and thus each switch, runs it again.
      wantedBy = [ "multi-user.target" ];
      after = [
        "appliance-gateway.service"
        "appliance-trial-arrived.service"
      ]
      ++ engineUnits;
      wants = [ "appliance-gateway.service" ] ++ engineUnits;
      onSuccess = [ "appliance-trial-passed.service" ] ++ cfg.onPass;
      onFailure = [ "appliance-trial-failed.service" ] ++ cfg.onFail;
      # A switch does not interrupt a running test: the switch itself requires that test.
      restartIfChanged = false;
      # The doctor calls nvidia-smi, nft and wg, and ip for the first hop towards a silent peer.
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
          # The folder of the test's report, and the gateway's folder, which has the keys.
          StateDirectory = [
            "appliance/smoke"
            "appliance-gateway"
          ];
          StateDirectoryMode = "0700";
          # Only a reboot empties it: its content distinguishes a boot from a switch.
          RuntimeDirectory = "appliance-smoke";
          RuntimeDirectoryPreserve = true;
          WorkingDirectory = "/var/lib/appliance/smoke";
          # The load generator reads its own CPU time, to report when it is the bottleneck.
          ProcSubset = "all";
          TimeoutStartSec = cfg.timeoutSec;
          # It is a client of the gateway: sockets to this host and to its address in the tunnel.
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
          # The kernel requires this capability for reading the firewall and the tunnel's handshakes over netlink.
          AmbientCapabilities = "CAP_NET_ADMIN";
          CapabilityBoundingSet = "CAP_NET_ADMIN";
          PrivateUsers = false;
        }
        # It reads the state of the cards from the driver.
        // lib.optionalAttrs cuda cardAccess;
    };
  };
}
