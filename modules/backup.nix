# Backups by restic to one or more repositories, and a weekly drill that restores one of them from the escrow sheet.
# appliance/watch/backup decides; the units here call it. Weights are not saved: models.lock pins them.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (import ./lib.nix { inherit lib; }) hardened secretPath;
  inherit (config) appliance;
  inherit (appliance) gateway network;
  cfg = appliance.backup;
  inherit (lib) mkOption types;
  format = pkgs.formats.json { };
  plan = "/etc/appliance/backup.json";
  metrics = "/run/appliance-metrics";
  wg = network.wireguard;
  stageUser = if gateway.enable then "appliance-gateway" else "appliance-backup";
  command = "${lib.getExe appliance.package} backup";
  database = appliance.settings.gateway.database_url or null;
  present = lib.filterAttrs (_: value: value != null);
  secrets =
    lib.optional wg.enable wg.privateKeyFile
    # The host's keys, by which clients recognise it.
    ++ lib.optional network.ssh.enable "/etc/ssh"
    ++ lib.optional (cfg.ageKeyFile != null) cfg.ageKeyFile;
  rendered = present {
    version = 1;
    inherit (appliance) host;
    site = if gateway.enable then "/etc/appliance/appliance.json" else null;
    copies = [ "/etc/appliance" ];
    paths = lib.unique (secrets ++ cfg.paths);
    age_key_file = cfg.ageKeyFile;
    drill = if cfg.drill.enable then cfg.drill.repository else null;
    pool = if appliance.pool.enable then appliance.pool.name else null;
    repositories = lib.mapAttrs (
      _: repository:
      present {
        inherit (repository) url;
        url_file = repository.urlFile;
        password_file = repository.passwordFile;
        environment_file = repository.environmentFile;
        limit_upload_kib = repository.limitUploadKiB;
        append_only = repository.appendOnly;
        keep_within = repository.keepWithin;
        timeout_s = repository.timeoutHours * 3600.0;
      }
    ) cfg.repositories;
  };
  inside = folder: path: path == folder || lib.hasPrefix "${folder}/" path;
  weights = appliance.models.store.path;
  isFolder = repository: repository.url != null && lib.hasPrefix "/" repository.url;
  # A repository at an address that only a secret holds, or behind a bucket's host name, has no known address.
  online = {
    RestrictAddressFamilies = [
      "AF_UNIX"
      "AF_INET"
      "AF_INET6"
    ];
    IPAddressDeny = "";
  };
  afterNetwork = {
    after = [ "network-online.target" ] ++ lib.optional wg.enable "wireguard-wg0.service";
    wants = [ "network-online.target" ];
  };
  tools = [
    pkgs.restic
    pkgs.rclone
  ];
in
{
  options.appliance.backup = {
    enable = lib.mkEnableOption "backups of keys, usage, configuration and secrets";
    repositories = mkOption {
      default = { };
      example = {
        vps = {
          urlFile = "/run/secrets/backup-url";
          passwordFile = "/run/secrets/backup-password";
          limitUploadKiB = 1500;
        };
      };
      description = "restic repositories by name. The password never leaves this host and the escrow sheet.";
      type = types.attrsOf (
        types.submodule {
          options = {
            url = mkOption {
              type = types.nullOr types.str;
              default = null;
              example = "rclone:bucket:appliance";
              description = "Address in restic's form. The store is readable for every user: an address with a password belongs into `urlFile`.";
            };
            urlFile = mkOption {
              type = types.nullOr secretPath;
              default = null;
              example = "/run/secrets/backup-url";
              description = "File of the address, such as `rest:http://gpu:PASSWORD@10.77.0.2:8100/gpu/`.";
            };
            passwordFile = mkOption {
              type = secretPath;
              example = "/run/secrets/backup-password";
              description = "File of the password that encrypts the repository.";
            };
            environmentFile = mkOption {
              type = types.nullOr secretPath;
              default = null;
              example = "/run/secrets/backup-environment";
              description = "File of NAME=value lines for restic and rclone, such as the keys of a bucket.";
            };
            limitUploadKiB = mkOption {
              type = types.nullOr types.ints.positive;
              default = null;
              example = 1500;
              description = "Upload limit in KiB/s; null for none. 1500 leaves half of a line of 30 Mbit/s free.";
            };
            appendOnly = mkOption {
              type = types.bool;
              default = true;
              example = false;
              description = "Whether the server refuses to delete. Then another machine prunes, with `appliance backup prune`.";
            };
            keepWithin = mkOption {
              type = types.nullOr (types.strMatching "([0-9]+[ymdh])+");
              default = null;
              example = "90d";
              description = "Age of the snapshots that each run keeps, on a server that may delete; null if another machine prunes.";
            };
            timeoutHours = mkOption {
              type = types.ints.between 1 72;
              default = 12;
              example = 24;
              description = "Limit of each step in hours. An interrupted upload continues in the next run.";
            };
          };
        }
      );
    };
    paths = mkOption {
      type = types.listOf (types.strMatching "/.*");
      default = [ ];
      example = [ "/var/lib/appliance-assistant" ];
      description = "More files and folders to save. Keys, usage, /etc/appliance, the tunnel's and SSH's private keys and the age key are always saved.";
    };
    ageKeyFile = mkOption {
      type = types.nullOr secretPath;
      default = config.sops.age.keyFile or null;
      defaultText = lib.literalExpression "config.sops.age.keyFile";
      example = "/var/lib/sops-nix/key.txt";
      description = "The age key that decrypts this host's secrets; the escrow sheet holds a copy.";
    };
    when = mkOption {
      type = types.str;
      default = "*-*-* 03:30:00";
      example = "*-*-* 01:00:00";
      description = "When backups start (systemd.time), within half an hour. A missed one runs after the next boot.";
    };
    drill = {
      enable = mkOption {
        type = types.bool;
        default = cfg.drill.escrowFile != null;
        defaultText = lib.literalExpression "config.appliance.backup.drill.escrowFile != null";
        example = false;
        description = "Whether to restore from the escrow sheet every week, and to boot a gateway on the restored data.";
      };
      escrowFile = mkOption {
        type = types.nullOr secretPath;
        default = null;
        example = "/run/secrets/escrow";
        description = "Copy of the escrow sheet, which `appliance backup escrow` writes. The drill uses nothing else.";
      };
      repository = mkOption {
        type = types.str;
        default = lib.head (lib.attrNames cfg.repositories ++ [ "none" ]);
        defaultText = lib.literalMD "the first repository by name";
        example = "vps";
        description = "Repository that the drill restores.";
      };
      when = mkOption {
        type = types.str;
        default = "Sun *-*-* 05:00:00";
        example = "Sat *-*-* 06:00:00";
        description = "When the drill starts (systemd.time), within an hour.";
      };
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.repositories != { };
        message = "appliance.backup.enable without a repository: set appliance.backup.repositories.NAME with urlFile and passwordFile.";
      }
      {
        assertion = lib.all (
          repository: (repository.url == null) != (repository.urlFile == null)
        ) (lib.attrValues cfg.repositories);
        message = "appliance.backup.repositories: set either url or urlFile in each of ${lib.concatStringsSep ", " (lib.attrNames cfg.repositories)}.";
      }
      {
        assertion = lib.all (repository: repository.keepWithin != null -> !repository.appendOnly) (
          lib.attrValues cfg.repositories
        );
        message = "appliance.backup.repositories: keepWithin deletes snapshots, which an append-only server refuses: remove it and run `appliance backup prune` on another machine, or set appendOnly = false.";
      }
      {
        assertion = lib.all (name: builtins.match "[a-z0-9][a-z0-9-]{0,30}" name != null) (
          lib.attrNames cfg.repositories
        ) && !(cfg.repositories ? stage) && !(cfg.repositories ? report);
        message = "appliance.backup.repositories: a name becomes part of a unit's name: use lower-case letters, digits and dashes, and neither stage nor report.";
      }
      {
        assertion = !(lib.any (path: inside path weights || inside weights path) cfg.paths);
        message = "appliance.backup.paths includes the weights in ${weights}: they are pinned by models.lock and fetched again; remove that path, because 60 GB take half a day on a slow line.";
      }
      {
        assertion = cfg.drill.enable -> cfg.drill.escrowFile != null;
        message = "appliance.backup.drill.enable without escrowFile: write the sheet with `appliance backup escrow --output FILE`, encrypt it with sops, and set appliance.backup.drill.escrowFile.";
      }
      {
        assertion = cfg.drill.enable -> cfg.repositories ? ${cfg.drill.repository};
        message = "appliance.backup.drill.repository = \"${cfg.drill.repository}\" is not one of appliance.backup.repositories.";
      }
    ];

    environment.etc."appliance/backup.json".source = format.generate "backup.json" rendered;
    environment.systemPackages = [ appliance.package ] ++ tools;

    # Not root: `restic unlock` sends SIGHUP to the process of each lock of this host. After a reboot another process has
    # that id, and SIGHUP would end it.
    users.users.appliance-backup = {
      isSystemUser = true;
      group = "appliance-backup";
      description = "Backups";
    };
    users.groups.appliance-backup = { };
    systemd.tmpfiles.rules = [
      "d ${metrics} 0755 root root"
    ]
    ++ map (repository: "d ${repository.url} 0700 appliance-backup appliance-backup") (
      lib.filter isFolder (lib.attrValues cfg.repositories)
    );

    systemd.services = {
      appliance-backup-stage = {
        description = "Consistent copy of keys, usage and configuration";
        after = lib.optional gateway.enable "appliance-gateway.service";
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig =
          hardened
          // {
            Type = "oneshot";
            # The owner of the database: SQLite's journal of another user would stop the gateway, and PostgreSQL
            # recognises the user of the socket.
            User = stageUser;
            Group = stageUser;
            ExecStart = "${command} stage --plan ${plan}";
            StateDirectory = [ "appliance-backup-stage" ] ++ lib.optional gateway.enable "appliance-gateway";
            StateDirectoryMode = "0700";
            TimeoutStartSec = 3600;
          }
          // lib.optionalAttrs (database != null) {
            # The same database as the gateway's, on this host or on a peer.
            inherit (online) RestrictAddressFamilies;
            IPAddressAllow = [ "localhost" ] ++ lib.optional wg.enable wg.network;
          };
      };

      appliance-backup-report = {
        description = "Metrics and notices about the backups";
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig =
          hardened
          // {
            Type = "oneshot";
            ExecStart = "${command} report --plan ${plan} --metrics ${metrics}/backup.prom";
            StateDirectory = "appliance-backup-report";
            TimeoutStartSec = 120;
            # The outbox of notices. The folder of metrics needs no line: systemd leaves /run writable.
            ReadWritePaths = [ "-/var/lib/appliance-notices" ];
          }
          # The state of a pool is in /proc/spl.
          // lib.optionalAttrs appliance.pool.enable { ProcSubset = "all"; };
      };
    }
    // lib.mapAttrs' (
      name: repository:
      lib.nameValuePair "appliance-backup-${name}" (
        afterNetwork
        // {
          description = "Backup to ${name}";
          after = afterNetwork.after ++ [ "appliance-backup-stage.service" ];
          wants = afterNetwork.wants ++ [ "appliance-backup-stage.service" ];
          onSuccess = [ "appliance-backup-report.service" ];
          onFailure = [ "appliance-backup-report.service" ];
          path = tools;
          # A switch must not interrupt an upload of hours.
          restartIfChanged = false;
          stopIfChanged = false;
          unitConfig.StartLimitIntervalSec = 0;
          serviceConfig =
            hardened
            // online
            # A repository on a disk of this host.
            // lib.optionalAttrs (isFolder repository) { ReadWritePaths = [ "-${repository.url}" ]; }
            // {
              Type = "oneshot";
              User = "appliance-backup";
              Group = "appliance-backup";
              ExecStart = "${command} run ${name} --staged --plan ${plan}";
              StateDirectory = "appliance-backup";
              StateDirectoryMode = "0755";
              CacheDirectory = "appliance-backup-${name}";
              CacheDirectoryMode = "0700";
              LoadCredential = [
                "${name}-password:${repository.passwordFile}"
              ]
              ++ lib.optional (repository.urlFile != null) "${name}-url:${repository.urlFile}"
              ++ lib.optional (
                repository.environmentFile != null
              ) "${name}-environment:${repository.environmentFile}";
              # The files belong to root, to the gateway and to later services: it may read all of them, and write none.
              AmbientCapabilities = "CAP_DAC_READ_SEARCH";
              CapabilityBoundingSet = "CAP_DAC_READ_SEARCH";
              PrivateUsers = false;
              ProtectHome = "read-only";
              # The doctor and the report read the records.
              UMask = "0022";
              # SIGTERM to the program only, which lets restic remove its lock.
              KillMode = "mixed";
              TimeoutStopSec = 45;
              # Waiting for another backup, then the steps, each with its own limit.
              TimeoutStartSec = (3 * repository.timeoutHours + 8) * 3600;
              Nice = 10;
              IOSchedulingClass = "idle";
            };
        }
      )
    ) cfg.repositories
    // lib.optionalAttrs cfg.drill.enable {
      appliance-restore-drill = afterNetwork // {
        description = "Restore from the escrow sheet and boot a gateway on the data";
        onSuccess = [ "appliance-backup-report.service" ];
        onFailure = [ "appliance-backup-report.service" ];
        path = tools;
        unitConfig.StartLimitIntervalSec = 0;
        serviceConfig =
          hardened
          // online
          // {
            Type = "oneshot";
            # As a user without any privilege, restic leaves the owners of restored files alone.
            User = "appliance-backup";
            Group = "appliance-backup";
            ExecStart = "${command} drill --plan ${plan} --escrow %d/escrow --work /var/cache/appliance-restore-drill";
            StateDirectory = "appliance-restore-drill";
            StateDirectoryMode = "0755";
            CacheDirectory = "appliance-restore-drill";
            CacheDirectoryMode = "0700";
            LoadCredential = [ "escrow:${cfg.drill.escrowFile}" ];
            # The doctor and the report read the record.
            UMask = "0022";
            KillMode = "mixed";
            TimeoutStopSec = 90;
            TimeoutStartSec = 14 * 3600;
            Nice = 10;
            IOSchedulingClass = "idle";
          };
      };
    };

    systemd.timers = {
      appliance-backup-report = {
        description = "Metrics and notices about the backups";
        wantedBy = [ "timers.target" ];
        timerConfig = {
          OnBootSec = "2min";
          OnUnitInactiveSec = "10min";
        };
      };
    }
    // lib.mapAttrs' (
      name: _:
      lib.nameValuePair "appliance-backup-${name}" {
        description = "Backup to ${name}";
        wantedBy = [ "timers.target" ];
        timerConfig = {
          OnCalendar = cfg.when;
          RandomizedDelaySec = "30min";
          Persistent = true;
        };
      }
    ) cfg.repositories
    // lib.optionalAttrs cfg.drill.enable {
      appliance-restore-drill = {
        description = "Weekly restore drill";
        wantedBy = [ "timers.target" ];
        timerConfig = {
          OnCalendar = cfg.drill.when;
          RandomizedDelaySec = "1h";
          Persistent = true;
        };
      };
    };
  };
}
