# Pages of two origins may use the service: laid over hosts/vps.nix for what the edge then adds to its own answers.
{
  appliance.settings.gateway.browser_origins = [
    "https://chat.example.org"
    "app://obsidian.md"
  ];
}
