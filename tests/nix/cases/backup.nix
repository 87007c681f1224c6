# Backups, their server and the ZFS pool.
{ lib }:
let
  service = name: c: c.systemd.services.${name}.serviceConfig;
  on = more: {
    appliance.backup = {
      enable = true;
      repositories.vps = {
        urlFile = "/run/secrets/backup-url";
        passwordFile = "/run/secrets/backup-password";
      };
    }
    // more;
  };
  server = {
    appliance.backupServer = {
      enable = true;
      htpasswdFile = "/run/secrets/backup-htpasswd";
      maxGiB = 20;
    };
  };
  pool = more: {
    networking.hostId = "8425e349";
    appliance.pool = {
      enable = true;
    }
    // more;
  };
in
{
  "backups have a unit and a timer for each repository, a copy and a report" = {
    host = "gpu";
    module = on { };
    gives = c: {
      services = lib.filter (name: lib.hasInfix "backup" name || lib.hasInfix "drill" name) (
        lib.attrNames c.systemd.services
      );
      timers = lib.filter (lib.hasInfix "backup") (lib.attrNames c.systemd.timers);
    };
    is = {
      services = [
        "appliance-backup-report"
        "appliance-backup-stage"
        "appliance-backup-vps"
      ];
      timers = [
        "appliance-backup-report"
        "appliance-backup-vps"
      ];
    };
  };
  "without backups there is no unit of them" = {
    host = "gpu";
    gives = c: lib.filter (lib.hasInfix "backup") (lib.attrNames c.systemd.services);
    is = [ ];
  };
  "a backup is not root and reads every file" = {
    host = "gpu";
    module = on { };
    gives = c: {
      inherit (service "appliance-backup-vps" c) User CapabilityBoundingSet LoadCredential;
    };
    is = {
      User = "appliance-backup";
      CapabilityBoundingSet = "CAP_DAC_READ_SEARCH";
      LoadCredential = [
        "vps-password:/run/secrets/backup-password"
        "vps-url:/run/secrets/backup-url"
      ];
    };
  };
  "the copy is made by the owner of the database" = {
    host = "gpu";
    module = on { };
    gives = c: (service "appliance-backup-stage" c).User;
    is = "appliance-gateway";
  };
  "the drill has the escrow sheet and no capability" = {
    host = "gpu";
    module = on { drill.escrowFile = "/run/secrets/escrow"; };
    gives = c: {
      inherit (service "appliance-restore-drill" c) LoadCredential CapabilityBoundingSet;
    };
    is = {
      LoadCredential = [ "escrow:/run/secrets/escrow" ];
      CapabilityBoundingSet = "";
    };
  };
  "backups without a repository" = {
    host = "gpu";
    module.appliance.backup.enable = true;
    refuses = "appliance.backup.enable without a repository";
  };
  "a repository without an address" = {
    host = "gpu";
    module = on { repositories.vps.passwordFile = "/run/secrets/p"; };
    refuses = "set either url or urlFile";
  };
  "a repository with two addresses" = {
    host = "gpu";
    module = on {
      repositories.vps = {
        url = "/srv";
        urlFile = "/run/secrets/u";
        passwordFile = "/run/secrets/p";
      };
    };
    refuses = "set either url or urlFile";
  };
  "pruning on an append-only server" = {
    host = "gpu";
    module = on {
      repositories.vps = {
        urlFile = "/run/secrets/u";
        passwordFile = "/run/secrets/p";
        keepWithin = "90d";
      };
    };
    refuses = "keepWithin deletes snapshots, which an append-only server refuses";
  };
  "a repository with the name of a unit" = {
    host = "gpu";
    module = on {
      repositories.report = {
        urlFile = "/run/secrets/u";
        passwordFile = "/run/secrets/p";
      };
    };
    refuses = "neither stage nor report";
  };
  "a backup of the weights" = {
    host = "gpu";
    module = on { paths = [ "/var/lib" ]; };
    refuses = "includes the weights";
  };
  "a drill without the sheet" = {
    host = "gpu";
    module = on { drill.enable = true; };
    refuses = "write the sheet with `appliance backup escrow";
  };
  "a drill of an unknown repository" = {
    host = "gpu";
    module = on {
      drill = {
        escrowFile = "/run/secrets/escrow";
        repository = "bucket";
      };
    };
    refuses = "\"bucket\" is not one of appliance.backup.repositories";
  };
  "a password in the store" = {
    host = "gpu";
    module = on {
      repositories.vps = {
        urlFile = "/run/secrets/u";
        passwordFile = "/nix/store/password";
      };
    };
    errors = "absolute path outside the Nix store";
    forces = c: (service "appliance-backup-vps" c).LoadCredential;
  };
  "the server listens on the tunnel only, and deletes nothing" = {
    host = "vps";
    module = server;
    gives = c: {
      inherit (c.services.restic.server) listenAddress appendOnly privateRepos;
      open = lib.hasInfix "iifname \"wg0\" ip saddr { 10.77.0.1 } tcp dport 8100 accept" c.networking.nftables.tables.appliance.content;
      public = lib.hasInfix "\n    tcp dport 8100" c.networking.nftables.tables.appliance.content;
    };
    is = {
      listenAddress = "10.77.0.2:8100";
      appendOnly = true;
      privateRepos = true;
      open = true;
      public = false;
    };
  };
  "a server without the tunnel" = {
    host = "vps";
    module = server // {
      appliance = server.appliance // {
        network.wireguard.enable = false;
        network.wireguard.address = "10.77.0.2";
      };
    };
    refuses = "appliance.backupServer.enable without the tunnel";
  };
  "the pool is imported without force, and has a limit of its cache" = {
    host = "gpu";
    module = pool { };
    gives = c: {
      inherit (c.boot.zfs) extraPools forceImportRoot;
      arc = lib.hasInfix "zfs_arc_max=8589934592" c.boot.extraModprobeConfig;
      wait = (service "zfs-import-tank" c).TimeoutStartSec;
      datasets = lib.attrNames c.services.sanoid.datasets;
    };
    is = {
      extraPools = [ "tank" ];
      forceImportRoot = false;
      arc = true;
      wait = 90;
      datasets = [ "tank/data" ];
    };
  };
  "copies go to the second pool" = {
    host = "gpu";
    module = pool { copyTo = "second/tank"; };
    gives = c: c.services.syncoid.commands."tank/data".target;
    is = "second/tank/data";
  };
  "a pool without a host id" = {
    host = "gpu";
    module.appliance.pool.enable = true;
    refuses = "appliance.pool needs networking.hostId";
  };
  "a copy on the same pool" = {
    host = "gpu";
    module = pool { copyTo = "tank/copy"; };
    refuses = "is on the pool tank itself";
  };
  "a mount of the pool that could stop the boot" = {
    host = "gpu";
    module = pool { } // {
      fileSystems."/data" = {
        device = "tank/data";
        fsType = "zfs";
        options = [ "defaults" ];
      };
    };
    refuses = "add \"nofail\"";
  };
}
