# The doctor's description of a machine, /etc/appliance/machine.json, on both hosts. tests/nix/test_machine.py reads the
# values in the same way as the doctor.
{ lib }:
let
  machine = c: c.appliance.doctor.machineFile.value;
  openings = c: map (o: "${toString o.port}/${o.protocol} ${o.by}") (machine c).firewall.openings;
  files = c: lib.filter (lib.hasPrefix "appliance/") (lib.attrNames c.environment.etc);
in
{
  "the description of a GPU host names its parts and openings" = {
    host = "gpu";
    gives = c: {
      parts = lib.attrNames (machine c);
      opens = openings c;
    };
    is = {
      parts = [
        "cards"
        "firewall"
        "host"
        "kernel_parameters"
        "memory"
        "observed"
        "tunnel"
        "units"
        "version"
        "weights"
      ];
      opens = [
        "8000/tcp gateway"
        "22/tcp ssh"
      ];
    };
  };
  "the description of a VPS names its parts and openings" = {
    host = "vps";
    gives = c: {
      parts = lib.attrNames (machine c);
      opens = openings c;
      files = files c;
    };
    is = {
      parts = [
        "edge"
        "firewall"
        "host"
        "kernel_parameters"
        "tunnel"
        "units"
        "version"
      ];
      opens = [
        "51820/udp tunnel"
        "80/tcp edge"
        "443/tcp edge"
        "22/tcp ssh"
      ];
      files = [ "appliance/machine.json" ];
    };
  };
  "a host without the doctor has no description" = {
    host = "vps";
    module.appliance.doctor.enable = false;
    gives = files;
    is = [ ];
  };
  "an on-demand engine is not among the required units" = {
    host = "gpu";
    module.appliance.settings.engines.agents.residency = "on-demand";
    gives = c: lib.any (lib.hasPrefix "appliance-engine-") (machine c).units;
    is = false;
  };
  "the lock of models, huge pages and kernel parameters are described" = {
    host = "gpu";
    module = {
      # Without SSH no user can log in, which NixOS otherwise refuses.
      users.allowNoPasswordLogin = true;
      appliance = {
        models.lock = /etc/hostname;
        memory.hugepages.reserveGiB = 4;
        gpu.peerToPeer = "iommu-off";
        network.ssh.enable = false;
      };
    };
    gives = c: {
      inherit (machine c) weights;
      inherit ((machine c).memory) hugepages;
      words = lib.sort lib.lessThan (machine c).kernel_parameters;
      opens = openings c;
    };
    is = {
      weights = {
        store = "/var/lib/appliance-models";
        lock = "/etc/appliance/models.lock";
      };
      hugepages = 2048;
      words = [
        "amd_iommu=off"
        "intel_iommu=off"
        "pcie_aspm=off"
        "pcie_port_pm=off"
        "transparent_hugepage=madvise"
      ];
      opens = [ "8000/tcp gateway" ];
    };
  };

  "a VPS with an invalid name" = {
    host = "vps";
    module.appliance.host = "my vps";
    refuses = "appliance.host = \"my vps\" is not a valid name for the doctor's description";
  };
  "a description set by hand" = {
    host = "gpu";
    module.appliance.doctor.machineFile = "/etc/mine.json";
    errors = "appliance.doctor.machineFile";
    forces = c: c.appliance.doctor.machineFile;
  };
  "a typo in the option of the doctor" = {
    host = "gpu";
    module.appliance.doctor.enabled = true;
    errors = "The option `appliance.doctor.enabled' does not exist";
  };
}
