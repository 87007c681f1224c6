# On top of guest.nix: a UPS, which the driver dummy-ups reads from a file. Only the units of power come from here.
{
  appliance = {
    power = {
      enable = true;
      ups = {
        driver = "dummy-ups";
        port = "/etc/ups.dev";
        directives = [ "pollinterval = 1" ];
      };
      limits.short_s = 2;
    };
    settings.hosts.gpu.ups.watts = 1500;
  };
}
