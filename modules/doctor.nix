# `appliance doctor` on both machines, and the description that it checks them against: /etc/appliance/machine.json,
# which appliance/contract/machine.py reads. This module decides nothing; it collects the values of other modules.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (config) appliance;
  inherit (appliance) network;
  inherit (appliance.observe) grafana;
  cfg = appliance.doctor;
  wg = network.wireguard;
  peers = lib.filterAttrs (_: peer: peer.publicKey != null) wg.peers;
  format = pkgs.formats.json { };
  part = test: value: if test then value else null;
  # The file omits the parts that this machine does not have.
  present = lib.filterAttrs (_: value: value != null);
  opening =
    test: protocol: port: by:
    lib.optional test { inherit protocol port by; };

  # Only the parameters that our modules set: those of other NixOS modules depend on the hardware.
  ours = [
    "transparent_hugepage="
    "pcie_aspm="
    "pcie_port_pm="
    "amd_iommu="
    "intel_iommu="
  ];
  units =
    lib.attrNames (
      lib.filterAttrs (
        name: unit: lib.hasPrefix "appliance-" name && unit.wantedBy != [ ]
      ) config.systemd.services
    )
    ++ lib.optional network.firewall.enable "nftables"
    ++ lib.optional wg.enable "wireguard-wg0"
    ++ lib.optional network.edge.enable "nginx"
    ++ lib.optional appliance.search.enable "searx";

  machine = present {
    version = 1;
    inherit (appliance) host;
    units = map (name: "${name}.service") units;
    kernel_parameters = lib.unique (
      lib.filter (word: lib.any (start: lib.hasPrefix start word) ours) config.boot.kernelParams
    );
    cards = part appliance.gpu.enable (present {
      pins = {
        inherit (appliance.pins)
          kernel
          driver
          cuda
          python
          torch
          vllm
          ;
      };
      peer_to_peer = appliance.gpu.peerToPeer;
      numa_pinned = appliance.numa.pin;
    });
    memory = part appliance.memory.enable {
      hugepages = appliance.memory.hugepages.reserveGiB * 512;
      transparent_hugepages = appliance.memory.transparentHugepages;
      max_map_count = appliance.memory.maxMapCount;
    };
    # A tunnel without peers has no handshakes; an assertion reports it at build time.
    tunnel = part (wg.enable && peers != { }) (present {
      interface = "wg0";
      inherit (wg) address mtu;
      listen_port = wg.listenPort;
      private_key_file = wg.privateKeyFile;
      peers = lib.mapAttrs (
        _: peer:
        present {
          public_key = peer.publicKey;
          inherit (peer) address endpoint;
        }
      ) peers;
    });
    firewall = part network.firewall.enable {
      openings =
        opening (wg.enable && wg.listenPort != null) "udp" wg.listenPort "tunnel"
        # Only the tunnel reaches the API.
        ++ map (o: o // { interface = "wg0"; }) (
          opening (
            appliance.gateway.enable && wg.enable && wg.peers != { }
          ) "tcp" appliance.settings.gateway.port "gateway"
          ++ opening (
            grafana.enable && wg.enable && wg.peers != { } && grafana.host == wg.address
          ) "tcp" grafana.port "grafana"
        )
        # Only the watched host reaches it, through the tunnel.
        ++ map (o: o // { interface = "wg0"; }) (
          opening appliance.deadman.enable "tcp" appliance.deadman.port "deadman"
        )
        ++ map (o: o // { interface = "wg0"; }) (
          lib.concatMap (port: opening (appliance.search.enable && wg.enable) "tcp" port "search") [
            appliance.search.port
            appliance.search.fetcherPort
          ]
        )
        ++ lib.concatMap (port: opening network.edge.enable "tcp" port "edge") [
          80
          443
        ]
        ++ opening (
          network.ssh.enable && (wg.enable || network.ssh.sources != [ ])
        ) "tcp" network.ssh.port "ssh";
      ranks = lib.mapAttrsToList (_: rank: {
        inherit (lib.elemAt rank.links rank.rank) interface;
        inherit (rank) ports;
      }) (lib.filterAttrs (_: rank: !(lib.elem null rank.links)) appliance.myRanks);
      extra_input = network.firewall.extraInput;
    };
    edge = part network.edge.enable {
      inherit (network.edge) domain;
      # The path that security.acme uses.
      certificate = "/var/lib/acme/${network.edge.domain}/fullchain.pem";
      nginx = config.services.nginx.package.version;
      http2 = config.services.nginx.virtualHosts.${network.edge.domain}.http2;
      gateways = map (
        address: "${address}:${toString appliance.settings.gateway.port}"
      ) network.edge.gateways;
    };
    notices = part appliance.notify.enable { status = "/run/appliance-notify/status.json"; };
    observed = part appliance.observe.enable (present {
      prometheus = config.services.prometheus.port;
      public_url = appliance.observe.publicUrl;
    });
    ups = part appliance.power.enable {
      name = "ups";
      inherit (config.power.ups.ups.ups) driver;
    };
    weights = part appliance.models.enable (present {
      store = appliance.models.store.path;
      lock = part (appliance.models.lock != null) "/etc/appliance/models.lock";
    });
  };
  hasSite = appliance.gateway.enable || appliance.engines.enable;
in
{
  options.appliance.doctor = {
    enable = lib.mkEnableOption "the description of this machine that `appliance doctor` checks it against";
    machineFile = lib.mkOption {
      type = lib.types.raw;
      internal = true;
      readOnly = true;
      default = format.generate "machine.json" machine;
      description = "The rendered description.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = builtins.match "[A-Za-z0-9][A-Za-z0-9._-]{0,62}" appliance.host != null;
        message = "appliance.host = \"${appliance.host}\" is not a valid name for the doctor's description of this machine: use letters, digits, dot, dash and underscore.";
      }
    ];
    environment.etc."appliance/machine.json".source = cfg.machineFile;
    # The doctor and the programs that it calls; NixOS installs those of the driver and of systemd.
    environment.systemPackages = [
      appliance.package
    ]
    ++ lib.optional network.firewall.enable pkgs.nftables
    ++ lib.optional wg.enable pkgs.wireguard-tools
    ++ lib.optional network.edge.enable pkgs.openssl;
    # A description that the doctor cannot read fails the build.
    system.checks = [
      (pkgs.runCommand "appliance-machine-check" { } ''
        ${lib.getExe appliance.package} doctor --list --machine ${cfg.machineFile} ${lib.optionalString hasSite "--config ${appliance.configFile}"}
        touch $out
      '')
    ];
  };
}
