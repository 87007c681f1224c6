# On top of hosts/gpu.nix: all choices that change the text of a unit, for the tools that read units.
{ lib, ... }:
{
  appliance = {
    gpu.peerToPeer = "off";
    gpuWatch = {
      act = true;
      fans = true;
      coldCycle = true;
    };
    models.lock = /etc/hostname;
    engines.credentials.hub-token = "/run/secrets/hub-token";
    admin = {
      enable = true;
      tokenFile = "/run/secrets/admin-token";
    };
    assistant.enable = true;
    notify = {
      enable = true;
      tokenFile = "/run/secrets/telegram-token";
      chatId = "123456789";
      deadman.url = "http://10.77.0.2:9097";
    };
    observe = {
      publicUrl = "https://llm.example.org";
      grafana = {
        adminPasswordFile = "/run/secrets/grafana-password";
        secretKeyFile = "/run/secrets/grafana-secret-key";
      };
    };
    power = {
      enable = true;
      limits.drain_s = 60;
    };
    settings.hosts.gpu.ups.watts = 1500;
    backup = {
      enable = true;
      repositories.vps = {
        urlFile = "/run/secrets/backup-url";
        passwordFile = "/run/secrets/backup-password";
        environmentFile = "/run/secrets/backup-environment";
        limitUploadKiB = 1500;
      };
      drill.escrowFile = "/run/secrets/escrow";
    };
    gateway.credentials.admin-token = "/run/secrets/admin-token";
    smoke = {
      when = "every-boot";
      enforce = true;
      onPass = [ "appliance-sign.service" ];
      onFail = [ "appliance-restore.service" ];
    };
    settings.hosts.gpu.gpus = lib.mkForce (
      map
        (index: {
          inherit index;
          model = "RTX PRO 6000 Blackwell Server";
          memory_mib = 97887;
          numa_node = index;
        })
        [
          0
          1
        ]
    );
    settings.engines.embed = {
      kind = "llamacpp";
      device = "cpu";
      host = "gpu";
      model = "qwen3-30b";
      context = 8192;
      concurrency = 8;
      port = 8120;
    };
  };
}
