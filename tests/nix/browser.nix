# On top of hosts/vps.nix: pages of two origins may use the service, so the edge adds CORS headers to its own responses.
{
  appliance.settings.gateway.browser_origins = [
    "https://chat.example.org"
    "app://obsidian.md"
  ];
}
