# On top of hosts/vps.nix: all choices that change the text of a unit, for the tools that read units.
{
  appliance.deadman = {
    enable = true;
    chatId = "4242";
    tokenFile = "/run/secrets/deadman-bot-token";
    pingUrlFile = "/run/secrets/deadman-ping-url";
  };
  appliance.search = {
    enable = true;
    secretFile = "/run/secrets/searxng";
    keyFile = "/run/secrets/fetcher-key";
    denied = [ "203.0.113.7/32" ];
  };
}
