# On top of hosts/gpu.nix: all choices that change the text of a unit, for the tools that read units.
{ lib, ... }:
{
  appliance = {
    gpu.peerToPeer = "off";
    models.lock = /etc/hostname;
    engines.credentials.hub-token = "/run/secrets/hub-token";
    admin = {
      enable = true;
      tokenFile = "/run/secrets/admin-token";
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
