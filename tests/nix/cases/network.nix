# Tunnel, firewall, SSH, edge.
{ lib }:
let
  wg = more: { appliance.network.wireguard = more; };
  key = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
  input = c: c.networking.nftables.tables.appliance.content;
  api = c: lib.filter (lib.hasInfix "dport 8000") (lib.splitString "\n" (input c));
  virtual = c: c.services.nginx.virtualHosts."llm.example.org";
  # An nginx of `version`. NixOS overrides the package, which would drop a plain attribute.
  nginxAt =
    version:
    { pkgs, ... }:
    let
      package = pkgs.nginx // {
        inherit version;
        override = _: package;
      };
    in
    {
      services.nginx = { inherit package; };
    };
in
{
  "a peer without its key" = {
    host = "gpu";
    module = wg { peers.vps.publicKey = lib.mkForce null; };
    refuses = "appliance.network.wireguard.peers.vps.publicKey is missing: print it on that host";
  };
  "no peer at all" = {
    host = "gpu";
    module = wg { peers = lib.mkForce { }; };
    refuses = "appliance.network.wireguard.peers is empty";
  };
  "two peers with one key" = {
    host = "gpu";
    module = wg {
      peers.vps.publicKey = lib.mkForce key;
      peers.vps2 = {
        publicKey = key;
        address = "10.77.0.3";
      };
    };
    refuses = "two peers have the same publicKey";
  };
  "two peers with one address" = {
    host = "gpu";
    module = wg {
      peers.vps2 = {
        publicKey = key;
        address = "10.77.0.2";
      };
    };
    refuses = "address 10.77.0.2 is used twice";
  };
  "a peer with this host's address" = {
    host = "gpu";
    module = wg {
      peers.vps2 = {
        publicKey = key;
        address = "10.77.0.1";
      };
    };
    refuses = "address 10.77.0.1 is used twice";
  };
  "an endpoint by name" = {
    host = "gpu";
    module = wg { peers.vps.endpoint = lib.mkForce "vps.example.org:51820"; };
    refuses = "peers.vps.endpoint is not ADDRESS:PORT: write the IP address";
  };
  "a tunnel that no side can start" = {
    host = "vps";
    module = wg { listenPort = lib.mkForce null; };
    refuses = "neither a listenPort nor a peer with an endpoint";
  };
  "a second VPS is a second peer" = {
    host = "gpu";
    module = wg {
      peers.vps2 = {
        publicKey = key;
        address = "10.77.0.3";
        endpoint = "198.51.100.7:51820";
      };
    };
    gives = c: map (p: p.allowedIPs) c.networking.wireguard.interfaces.wg0.peers;
    is = [
      [ "10.77.0.2/32" ]
      [ "10.77.0.3/32" ]
    ];
  };
  "the private key is made on the host" = {
    host = "gpu";
    gives = c: {
      inherit (c.networking.wireguard.interfaces.wg0) generatePrivateKeyFile privateKeyFile;
    };
    is = {
      generatePrivateKeyFile = true;
      privateKeyFile = "/var/lib/wireguard/wg0.key";
    };
  };

  "the API only through the tunnel, from its peers" = {
    host = "gpu";
    gives = api;
    is = [ "    iifname \"wg0\" ip saddr { 10.77.0.2 } tcp dport 8000 accept" ];
  };
  "a VPS does not open the API's port" = {
    host = "vps";
    gives = api;
    is = [ ];
  };
  "the VPS opens HTTP and the tunnel" = {
    host = "vps";
    gives =
      c:
      map (rule: lib.hasInfix rule (input c)) [
        "tcp dport { 80, 443 } accept"
        "udp dport 51820 accept"
      ];
    is = [
      true
      true
    ];
  };
  "the GPU host opens neither" = {
    host = "gpu";
    gives =
      c:
      map (rule: lib.hasInfix rule (input c)) [
        "443"
        "udp dport 51820"
      ];
    is = [
      false
      false
    ];
  };
  "everything else is dropped" = {
    host = "gpu";
    gives = c: [
      c.networking.firewall.enable
      (lib.hasInfix "hook input priority filter; policy drop;" (input c))
    ];
    is = [
      false
      true
    ];
  };

  "SSH without a key" = {
    host = "gpu";
    module = {
      # NixOS refuses it as well; this case is about our message.
      users.allowNoPasswordLogin = true;
      appliance.network.ssh.keys = lib.mkForce [ ];
    };
    refuses = "so no login would be possible";
  };
  "SSH rejects passwords" = {
    host = "vps";
    gives = c: {
      inherit (c.services.openssh.settings)
        PasswordAuthentication
        KbdInteractiveAuthentication
        PermitRootLogin
        ;
    };
    is = {
      PasswordAuthentication = false;
      KbdInteractiveAuthentication = false;
      PermitRootLogin = "prohibit-password";
    };
  };

  "HTTP/2 on a broken nginx" = {
    host = "vps";
    module = {
      imports = [ (nginxAt "1.30.6") ];
      services.nginx.virtualHosts."llm.example.org".http2 = true;
    };
    refuses = "has memory corruption there (CVE-2026-123007, fixed in 1.30.7)";
  };
  "HTTP/2 stays off before 1.30.7" = {
    host = "vps";
    module = nginxAt "1.30.6";
    gives = c: (virtual c).http2;
    is = false;
  };
  "HTTP/2 is on from 1.30.7" = {
    host = "vps";
    module = nginxAt "1.30.7";
    gives = c: (virtual c).http2;
    is = true;
  };
  "tokens are not buffered" = {
    host = "vps";
    gives = c: lib.hasInfix "proxy_buffering off;" (virtual c).locations."/v1/".extraConfig;
    is = true;
  };
  "an unknown host name gets no certificate" = {
    host = "vps";
    gives = c: { inherit (c.services.nginx.virtualHosts."_") default rejectSSL; };
    is = {
      default = true;
      rejectSSL = true;
    };
  };
  "no gateway behind the edge" = {
    host = "vps";
    module.appliance.network.edge.gateways = lib.mkForce [ ];
    refuses = "appliance.network.edge.gateways is empty";
  };
  "units behind the firewall require its rules" = {
    host = "gpu";
    gives =
      c:
      map (unit: c.systemd.services.${unit}.requires) [
        "appliance-gateway"
        "wireguard-wg0"
      ];
    is = [
      [ "nftables.service" ]
      [ "nftables.service" ]
    ];
  };
  "the edge requires the rules of the firewall" = {
    host = "vps";
    gives =
      c:
      map (lib.elem "nftables.service") [
        c.systemd.services.nginx.requires
        c.systemd.services.nginx.after
      ];
    is = [
      true
      true
    ];
  };
  "a host that connects sends keepalives" = {
    host = "gpu";
    gives = c: {
      inherit (lib.head c.networking.wireguard.interfaces.wg0.peers) persistentKeepalive;
      watch = lib.hasSuffix "/bin/ping -q -n -I wg0 -i 5 10.77.0.2" c.systemd.services.appliance-tunnel-watch-vps.serviceConfig.ExecStart;
    };
    is = {
      persistentKeepalive = 5;
      watch = true;
    };
  };
  "the keepalives look up the interface over netlink" = {
    host = "gpu";
    gives = c: c.systemd.services.appliance-tunnel-watch-vps.serviceConfig.RestrictAddressFamilies;
    is = [
      "AF_INET"
      "AF_NETLINK"
    ];
  };
  "a host that only listens sends no keepalives" = {
    host = "vps";
    gives = c: [
      (lib.head c.networking.wireguard.interfaces.wg0.peers).persistentKeepalive
      (c.systemd.services ? appliance-tunnel-watch-gpu)
    ];
    is = [
      null
      false
    ];
  };
  "keepalives once an hour" = {
    host = "gpu";
    module = wg { keepaliveSec = 3600; };
    forces = c: c.appliance.network.wireguard.keepaliveSec;
    errors = "is not of type `integer between 1 and 60";
  };
  "keepalives without a pause" = {
    host = "gpu";
    module = wg { keepaliveSec = 0; };
    forces = c: c.appliance.network.wireguard.keepaliveSec;
    errors = "is not of type `integer between 1 and 60";
  };
  "a tunnel too small for IPv6" = {
    host = "gpu";
    module = wg { mtu = 1279; };
    forces = c: c.appliance.network.wireguard.mtu;
    errors = "is not of type `integer between 1280 and 1500";
  };
  "a GPU host at a public address" = {
    host = "vps";
    module.appliance.network.edge.gateways = lib.mkForce [ "203.0.113.50" ];
    forces = c: c.appliance.network.edge.gateways;
    errors = "is not of type";
  };
  "the MTU of the tunnel fits every line" = {
    host = "gpu";
    gives = c: [
      c.networking.wireguard.interfaces.wg0.mtu
      c.boot.kernel.sysctl."net.ipv4.tcp_mtu_probing"
    ];
    is = [
      1280
      1
    ];
  };
  "an upload of a file has the assistant's limit" = {
    host = "vps";
    gives =
      c:
      let
        text = (virtual c).locations."= /v1/files".extraConfig;
      in
      [
        (lib.hasInfix "client_max_body_size 68157440;" text)
        (lib.hasInfix "error_page 413 = @file_too_large;" text)
        (lib.hasInfix "error_page 413 = @too_large;" text)
        (lib.hasInfix "limit_conn key_conn" text)
        (lib.hasInfix "client_max_body_size" (virtual c).locations."/v1/".extraConfig)
        (lib.hasInfix "limit of 68157440 bytes" (virtual c).locations."@file_too_large".extraConfig)
      ];
    is = [
      true
      true
      false
      true
      false
      true
    ];
  };
  "an upload follows another limit of the assistant" = {
    host = "vps";
    module.appliance.settings.assistant.max_file_bytes = 1000;
    gives =
      c: lib.hasInfix "client_max_body_size 1049576;" (virtual c).locations."= /v1/files".extraConfig;
    is = true;
  };
  "the limit of the body is set once" = {
    host = "vps";
    gives = c: [
      c.services.nginx.clientMaxBodySize
      (lib.hasInfix "client_max_body_size" c.services.nginx.commonHttpConfig)
    ];
    is = [
      "16777216"
      false
    ];
  };
  "a single GPU host is never marked as failed" = {
    host = "vps";
    gives = c: {
      inherit (c.services.nginx.upstreams.gateway.servers."10.77.0.1:8000") max_fails;
      moves = lib.hasInfix "@elsewhere" (virtual c).locations."/v1/".extraConfig;
    };
    is = {
      max_fails = 0;
      moves = false;
    };
  };
  "a draining GPU host's requests go to the other" = {
    host = "vps";
    module.appliance.network.edge.gateways = lib.mkForce [
      "10.77.0.1"
      "10.77.0.3"
    ];
    gives = c: {
      moves = lib.hasInfix "error_page 503 = @elsewhere;" (virtual c).locations."/v1/".extraConfig;
      other = lib.attrNames c.services.nginx.upstreams."gateway-not-10.77.0.1".servers;
      repeats =
        lib.hasInfix "next_upstream error timeout non_idempotent"
          (virtual c).locations."/v1/".extraConfig;
    };
    is = {
      moves = true;
      other = [ "10.77.0.3:8000" ];
      repeats = false;
    };
  };
  "only the paths of the API and of the page pass" = {
    host = "vps";
    gives = c: {
      other = (virtual c).locations."/".return;
      passed = lib.attrNames (lib.filterAttrs (_: l: l.proxyPass or null != null) (virtual c).locations);
      limits = lib.length (
        lib.unique (
          map (path: (virtual c).locations.${path}.extraConfig) [
            "/v1/"
            "= /tokenize"
            "= /detokenize"
          ]
        )
      );
    };
    is = {
      other = "404";
      passed = [
        "/page/"
        "/v1/"
        "= /"
        "= /detokenize"
        "= /session"
        "= /tokenize"
        "= /v1/audio/transcriptions"
        "= /v1/audio/translations"
        "= /v1/files"
      ];
      limits = 1;
    };
  };
  "an origin with a path" = {
    host = "vps";
    module.appliance.settings.gateway.browser_origins = [ "https://chat.example.org/" ];
    forces = c: c.appliance.settings.gateway.browser_origins;
    errors = "is not of type";
  };
  "the origin null" = {
    host = "gpu";
    module.appliance.settings.gateway.browser_origins = [ "null" ];
    forces = c: c.appliance.settings.gateway.browser_origins;
    errors = "is not of type";
  };
  "no origin is allowed by default" = {
    host = "vps";
    gives =
      c:
      lib.hasInfix "allowed_origin" (
        c.services.nginx.commonHttpConfig + (virtual c).locations."@flooded".extraConfig
      );
    is = false;
  };
  "the edge adds CORS headers for an allowed origin" = {
    host = "vps";
    module.appliance.settings.gateway.browser_origins = [ "https://chat.example.org" ];
    gives = c: {
      map = lib.hasInfix "\"https://chat.example.org\" $http_origin;" c.services.nginx.commonHttpConfig;
      answers =
        map
          (
            name:
            lib.hasInfix "Access-Control-Allow-Origin $allowed_origin always;"
              (virtual c).locations.${name}.extraConfig
          )
          [
            "@broken"
            "@flooded"
            "@too_large"
            "@file_too_large"
          ];
    };
    is = {
      map = true;
      answers = [
        true
        true
        true
        true
      ];
    };
  };

  "an owner's own values replace ours on the VPS" = {
    host = "vps";
    module = {
      services.nginx.serverTokens = true;
      services.nginx.recommendedTlsSettings = false;
      services.openssh.settings.PermitRootLogin = "no";
      boot.kernel.sysctl."kernel.panic" = 60;
    };
    gives = c: [
      c.services.nginx.serverTokens
      c.services.nginx.recommendedTlsSettings
      c.services.openssh.settings.PermitRootLogin
      c.boot.kernel.sysctl."kernel.panic"
    ];
    is = [
      true
      false
      "no"
      60
    ];
  };
  "an owner's own values replace ours on the GPU server" = {
    host = "gpu";
    module = {
      networking.wireguard.interfaces.wg0.generatePrivateKeyFile = false;
      boot.kernel.sysctl."net.ipv4.tcp_orphan_retries" = 8;
      hardware.nvidia.nvidiaSettings = true;
    };
    gives = c: [
      c.networking.wireguard.interfaces.wg0.generatePrivateKeyFile
      c.boot.kernel.sysctl."net.ipv4.tcp_orphan_retries"
      c.hardware.nvidia.nvidiaSettings
    ];
    is = [
      false
      8
      true
    ];
  };
}
