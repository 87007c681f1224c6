# The driver: the default, the other branch, untested versions.
{ ... }:
{
  "an untested driver" = {
    host = "gpu";
    module.appliance.pins.driver = "595.84";
    refuses = "appliance.pins.driver = \"595.84\" is untested. Tested are 580.173.02, 595.71.05: set it to one of them";
  };
  "the driver of the other branch" = {
    host = "gpu";
    module.appliance.pins.driver = "580.173.02";
    gives = c: [
      c.hardware.nvidia.package.version
      c.system.switch.inhibitors.nvidia-driver
      c.appliance.pins.drivers.${c.appliance.pins.driver}.openSha256
    ];
    is = [
      "580.173.02"
      "580.173.02"
      "sha256-lhloZdf6XbaAFTZBF1DxE0Nv9VC6obY8UPf0VyfVepE="
    ];
  };
  "a driver that an operator has tested" = {
    host = "gpu";
    module.appliance.pins = {
      driver = "595.84";
      drivers."595.84" = {
        sha256_64bit = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        openSha256 = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        settingsSha256 = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        persistencedSha256 = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
      };
    };
    gives = c: c.hardware.nvidia.package.version;
    is = "595.84";
  };
  "a driver without its hashes" = {
    host = "gpu";
    module.appliance.pins = {
      driver = "595.84";
      drivers."595.84".openSha256 = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    };
    refuses = "appliance.pins.drivers.\"595.84\" lacks persistencedSha256, settingsSha256, sha256_64bit";
  };
}
