# SSH with keys only, through the tunnel and from `sources`: SSH must stay reachable if the tunnel does not start.
{ config, lib, ... }:
let
  cfg = config.appliance.network.ssh;
  inherit (lib) mkOption types;
in
{
  options.appliance.network.ssh = {
    enable = lib.mkEnableOption "SSH with keys only";
    port = mkOption {
      type = types.port;
      default = 22;
      example = 2222;
      description = "Port of SSH.";
    };
    keys = mkOption {
      type = types.listOf (
        types.strMatching "(ssh-ed25519|sk-ssh-ed25519@openssh.com|ecdsa-sha2-nistp256) [A-Za-z0-9+/=]+.*"
      );
      default = [ ];
      example = [
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExam admin@home"
      ];
      description = "Public keys that may log in as root.";
    };
    sources = mkOption {
      type = types.listOf types.str;
      default = [
        "192.168.0.0/16"
        "10.0.0.0/8"
        "172.16.0.0/12"
      ];
      example = [ "192.168.1.0/24" ];
      description = "Networks outside the tunnel from which SSH is allowed.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.keys != [ ];
        message = "appliance.network.ssh.keys is empty and passwords are off, so no login would be possible: add your public key (`cat ~/.ssh/id_ed25519.pub`).";
      }
    ];
    services.openssh = {
      enable = true;
      ports = [ cfg.port ];
      # The appliance's own table decides which sources may connect.
      openFirewall = false;
      settings = {
        PasswordAuthentication = false;
        KbdInteractiveAuthentication = false;
        PermitRootLogin = lib.mkDefault "prohibit-password";
        X11Forwarding = lib.mkDefault false;
      };
    };
    users.users.root.openssh.authorizedKeys.keys = cfg.keys;
  };
}
