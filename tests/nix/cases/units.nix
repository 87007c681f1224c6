# The units: one per replica, how they stop, what they may read.
{ lib }:
let
  service = name: c: c.systemd.services.${name}.serviceConfig;
  engines = c: lib.filter (lib.hasPrefix "appliance-engine-") (lib.attrNames c.systemd.services);
in
{
  "a unit per replica" = { host = "gpu"; gives = engines; is = [ "appliance-engine-agents.0" "appliance-engine-agents.1" ]; };
  "a lone replica bears the engine's name" = { host = "gpu"; module.appliance.settings.engines.agents = { replicas = lib.mkForce 1; gpus = lib.mkForce [ 0 ]; }; gives = c: lib.hasInfix "engine exec agents --config /etc/appliance/appliance.json" (service "appliance-engine-agents" c).ExecStart; is = true; };
  "an engine of another host has no unit" = { host = "gpu"; module.appliance.settings = { hosts.other.memory_gib = 64; engines.far = { host = "other"; model = "qwen3-30b"; device = "cpu"; context = 4096; concurrency = 2; port = 8200; }; }; gives = c: lib.elem "appliance-engine-far" (engines c); is = false; };
  "an engine is killed only after its own deadline" = { host = "gpu"; module.appliance.settings.engines.agents.shutdown_timeout_s = 60; gives = c: (service "appliance-engine-agents.0" c).TimeoutStopSec; is = 75; };
  "an engine on the CPU sees no card" = { host = "gpu"; module.appliance.settings.engines.agents = { device = lib.mkForce "cpu"; command = "/opt/vllm-cpu/bin/python"; gpus = lib.mkForce [ ]; replicas = lib.mkForce 1; }; gives = c: { inherit (service "appliance-engine-agents" c) PrivateDevices PrivateUsers; }; is = { PrivateDevices = true; PrivateUsers = true; }; };
  "vLLM on the CPU without an environment" = { host = "gpu"; module.appliance.settings.engines.agents = { device = lib.mkForce "cpu"; gpus = lib.mkForce [ ]; replicas = lib.mkForce 1; }; refuses = "engines.agents: vLLM on the CPU has no environment in this flake"; };
  "engines talk to this host only" = { host = "gpu"; gives = c: { inherit (service "appliance-engine-agents.0" c) IPAddressDeny IPAddressAllow; }; is = { IPAddressDeny = "any"; IPAddressAllow = "localhost"; }; };
  "a secret becomes a credential" = { host = "gpu"; module.appliance.gateway.credentials.admin = "/run/secrets/admin"; gives = c: (service "appliance-gateway" c).LoadCredential; is = [ "admin:/run/secrets/admin" ]; };
  "the smoke test leaves a seam" = { host = "gpu"; module.appliance.smoke = { onPass = [ "bless.service" ]; onFail = [ "rollback.service" ]; }; gives = c: { inherit (c.systemd.services.appliance-smoke) onSuccess onFailure; }; is = { onSuccess = [ "bless.service" ]; onFailure = [ "rollback.service" ]; }; };
  "the smoke test once" = { host = "gpu"; module.appliance.smoke.when = "first-boot"; gives = c: c.systemd.services.appliance-smoke.unitConfig.ConditionPathExists; is = "!/var/lib/appliance-smoke/passed"; };
  "a locked model is verified before it is loaded" = { host = "gpu"; module.appliance.models.lock = /etc/hostname; gives = c: c.systemd.services."appliance-engine-agents.0".requires; is = [ "appliance-models-verify.service" ]; };
  "the VPS runs nothing of ours" = { host = "vps"; gives = c: lib.filter (lib.hasPrefix "appliance-") (lib.attrNames c.systemd.services); is = [ ]; };

  "an engine on demand is started by nobody else" = { host = "gpu"; module.appliance.settings.engines.agents.residency = "on-demand"; gives = c: { inherit (c.systemd.services."appliance-engine-agents.0") wantedBy; smoke = lib.any (lib.hasPrefix "appliance-engine-") c.systemd.services.appliance-smoke.wants; control = c.appliance.settings.gateway.engine_control; }; is = { wantedBy = [ ]; smoke = false; control = "systemd"; }; };
  "the gateway may manage engines' units only" = { host = "gpu"; module.appliance.settings.engines.agents.residency = "on-demand"; gives = c: map (word: lib.hasInfix word c.security.polkit.extraConfig) [ "subject.user == \"appliance-gateway\"" "/^appliance-engine-" "manage-units" ]; is = [ true true true ]; };
  "engines that are always loaded need no polkit" = { host = "gpu"; gives = c: lib.hasInfix "appliance-engine" (c.security.polkit.extraConfig or ""); is = false; };
  "the admin API reads its token as a credential" = { host = "gpu"; module.appliance.admin = { enable = true; tokenFile = "/run/secrets/admin-token"; }; gives = c: { inherit (service "appliance-admin" c) LoadCredential IPAddressAllow User; }; is = { LoadCredential = [ "admin-token:/run/secrets/admin-token" ]; IPAddressAllow = "localhost"; User = "appliance-gateway"; }; };
  "the admin API without a token" = { host = "gpu"; module.appliance.admin.enable = true; refuses = "appliance.admin.enable without a token"; };
  "the admin API with its token in the store" = { host = "gpu"; module.appliance.admin = { enable = true; tokenFile = "/nix/store/token"; }; errors = "absolute path outside the Nix store"; forces = c: (service "appliance-admin" c).LoadCredential; };
  "the admin API on the tunnel" = { host = "gpu"; module.appliance = { admin = { enable = true; tokenFile = "/run/secrets/t"; }; settings.admin.host = "10.77.0.1"; }; refuses = "settings.admin.host = \"10.77.0.1\" is not loopback"; };

  "the template's GPU server" = { host = "my-gpu"; gives = engines; is = [ "appliance-engine-chat" ]; };
  "the template's VPS" = { host = "my-vps"; gives = c: lib.attrNames c.services.nginx.virtualHosts; is = [ "_" "llm.example.org" ]; };
  "an example key warns" = { host = "my-vps"; gives = c: lib.any (lib.hasInfix "peers.gpu.publicKey is this repository's example") c.warnings; is = true; };
  "a smoke test without a gateway" = { host = "gpu"; module.appliance.gateway.enable = lib.mkForce false; refuses = "appliance.smoke.enable without appliance.gateway.enable"; };
}
