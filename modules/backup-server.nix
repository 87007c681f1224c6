# The append-only server of backups, on the VPS: it listens on its address in the tunnel, and its clients can add
# snapshots and delete none. It never has a repository's password.
{ config, lib, ... }:
let
  inherit (import ./lib.nix { inherit lib; }) secretPath;
  inherit (config.appliance) network;
  cfg = config.appliance.backupServer;
  wg = network.wireguard;
  inherit (lib) mkOption types;
  clients = map (peer: peer.address) (lib.attrValues wg.peers);
  unit = "restic-rest-server";
in
{
  options.appliance.backupServer = {
    enable = lib.mkEnableOption "the append-only server of backups";
    port = mkOption {
      type = types.port;
      default = 8100;
      example = 8100;
      description = "Port on the address of the tunnel.";
    };
    dataDir = mkOption {
      type = types.strMatching "/.*";
      default = "/var/lib/restic";
      example = "/srv/backups";
      description = "Folder of the repositories.";
    };
    htpasswdFile = mkOption {
      type = secretPath;
      example = "/run/secrets/backup-htpasswd";
      description = "File of the accounts, in htpasswd's format (`htpasswd -nB gpu`). Each account reaches only the repository of its own name.";
    };
    maxGiB = mkOption {
      type = types.ints.positive;
      example = 20;
      description = "Size of all repositories in GiB, at which the server accepts no more data: a full disk would end the VPS.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = wg.enable;
        message = "appliance.backupServer.enable without the tunnel: the server listens on its address only; enable appliance.network.wireguard.";
      }
    ];
    services.restic.server = {
      enable = true;
      listenAddress = "${wg.address}:${toString cfg.port}";
      inherit (cfg) dataDir;
      appendOnly = true;
      privateRepos = true;
      extraFlags = [
        # The unit's user may not read the secret's file itself.
        "--htpasswd-file"
        "/run/credentials/${unit}.service/htpasswd"
        "--max-size"
        (toString (cfg.maxGiB * 1024 * 1024 * 1024))
      ];
    };
    systemd.services.${unit} = {
      unitConfig.StartLimitIntervalSec = 0;
      serviceConfig = {
        LoadCredential = [ "htpasswd:${cfg.htpasswdFile}" ];
        Restart = "always";
        RestartSec = 5;
      };
    };
    appliance.network.firewall.extraInput = lib.mkIf network.firewall.enable ''
      # Backups, from the peers of the tunnel only.
      iifname "wg0" ip saddr { ${lib.concatStringsSep ", " clients} } tcp dport ${toString cfg.port} accept
    '';
  };
}
