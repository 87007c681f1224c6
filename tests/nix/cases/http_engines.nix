# Engines of kind http: no unit, a key for the gateway, and the way of audio through the edge.
{ lib }:
let
  ears = more: {
    appliance.settings = {
      models.whisper = {
        source = "/models/whisper";
        task = "transcribe";
      };
      engines.ears = {
        kind = "http";
        host = "gpu";
        model = "whisper";
        device = "cpu";
        context = 448;
        concurrency = 2;
        address = "192.168.1.20";
        port = 8080;
      }
      // more;
    };
  };
  service = name: c: c.systemd.services.${name}.serviceConfig;
  gateway = service "appliance-gateway";
in
{
  "another server has no unit, and the gateway may reach its address" = {
    host = "gpu";
    module = ears { };
    gives = c: [
      (c.systemd.services ? appliance-engine-ears)
      (lib.elem "192.168.1.20" (gateway c).IPAddressAllow)
    ];
    is = [
      false
      true
    ];
  };
  "the key of another server is a credential of the gateway" = {
    host = "gpu";
    module = {
      imports = [ (ears { }) ];
      appliance.gateway.engineKeys.ears = "/run/secrets/ears";
    };
    gives = c: [
      (lib.elem "engine-key-ears:/run/secrets/ears" (gateway c).LoadCredential)
      c.appliance.settings.engines.ears.key_file
    ];
    is = [
      true
      "/run/credentials/appliance-gateway.service/engine-key-ears"
    ];
  };
  "without another server the gateway reaches this host and the tunnel" = {
    host = "gpu";
    gives = c: lib.filter (a: a != "localhost" && !lib.hasInfix "10.77" a) (gateway c).IPAddressAllow;
    is = [ ];
  };
  "audio passes the edge while it arrives, up to the gateway's limit" = {
    host = "vps";
    module.appliance.settings.gateway.max_audio_bytes = 104857600;
    gives =
      c:
      let
        inherit (c.services.nginx.virtualHosts.${c.appliance.network.edge.domain}) locations;
        text = locations."= /v1/audio/transcriptions".extraConfig;
      in
      [
        (lib.hasInfix "proxy_request_buffering off;" text)
        (lib.hasInfix "client_max_body_size 105906176;" text)
        (locations ? "= /v1/audio/translations")
      ];
    is = [
      true
      true
      true
    ];
  };

  "a key for an engine that this host starts" = {
    host = "gpu";
    module.appliance.gateway.engineKeys.agents = "/run/secrets/agents";
    refuses = "engineKeys.agents: no engine of kind http of this host has that name";
  };
  "a key in the store" = {
    host = "gpu";
    module = {
      imports = [ (ears { }) ];
      appliance.gateway.engineKeys.ears = ./http_engines.nix;
    };
    errors = "absolute path outside the Nix store";
  };
  "another server at a public address" = {
    host = "gpu";
    module = ears { address = "203.0.113.9"; };
    invalid = "203.0.113.9 is not a private address";
  };
  "another server with a card" = {
    host = "gpu";
    module = ears {
      device = "cuda";
      gpus = [ 0 ];
    };
    invalid = "an engine of kind http has no card of a host";
  };
}
