"""Translation of evaluated option values to the files that NixOS would write for nft, WireGuard and nginx.

An option that could change the network traffic of a machine, and that is not supported here, stops the
translation. So no test can pass because a setting was silently omitted. The order and the fixed lines are those of
the modules of nixpkgs (nixos/modules/services/networking/{nftables,wireguard}.nix and
nixos/modules/services/web-servers/nginx).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

NETWORK = ("networking.", "services.", "security.acme.", "systemd.network", "systemd.sockets", "virtualisation.")
"""Options under these may change the network traffic of a machine."""

TRANSLATED = frozenset(
    {
        "networking.firewall.enable",
        "networking.nftables.enable",
        "networking.nftables.tables",
        "networking.wireguard.interfaces",
        "services.nginx.appendConfig",
        "services.nginx.clientMaxBodySize",
        "services.nginx.commonHttpConfig",
        "services.nginx.enable",
        "services.nginx.eventsConfig",
        "services.nginx.recommendedTlsSettings",
        "services.nginx.serverTokens",
        "services.nginx.upstreams",
        "services.nginx.virtualHosts",
        "services.openssh.enable",
        "services.openssh.openFirewall",
        "services.openssh.ports",
        "security.acme.acceptTerms",
        "security.acme.defaults",
    }
)
SILENT = frozenset(
    {
        "networking.hostName",
        "services.journald.extraConfig",
        "services.nginx.package",  # the nginx of the machine that tests
        "services.openssh.settings",  # requirements of sshd for a login
        "services.xserver.videoDrivers",  # selects the driver; no X server is enabled
    }
)
"""Options without an effect on the network."""


class UntranslatedError(Exception):
    """An option that this module does not support."""

    def __init__(self, option: str, value: object) -> None:
        super().__init__(f"{option} = {value!r} is not supported by tests/nix/translate.py: add its meaning there")


def check(values: Mapping[str, Any]) -> None:
    """Raise :class:`UntranslatedError` for the first option that may affect the network and is not supported."""
    for option, value in values.items():
        if option.startswith(NETWORK) and option not in TRANSLATED | SILENT:
            raise UntranslatedError(option, value)
    if values.get("networking.firewall.enable", True):
        raise UntranslatedError("networking.firewall.enable", True)


def _check_keys(
    path: str, given: Mapping[str, Any], supported: Iterable[str], idle: Mapping[str, tuple[object, ...]]
) -> None:
    """Raise an error unless each key is in ``supported``, or in ``idle`` with a value that has no effect."""
    for key, value in given.items():
        unset = isinstance(value, str) and value.startswith("<default:")
        if key in supported or unset:
            continue
        if key not in idle or value not in idle[key]:
            raise UntranslatedError(f"{path}.{key}", value)


def sysctls(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the network settings of the kernel."""
    given = values.get("boot.kernel.sysctl", {})
    return {name: str(value) for name, value in given.items() if name.startswith("net.") and value is not None}


def nftables(values: Mapping[str, Any]) -> str:
    """Return the file that nftables.service loads atomically."""
    if not values.get("networking.nftables.enable", False):
        raise UntranslatedError("networking.nftables.enable", False)
    text = ""
    for name, table in values["networking.nftables.tables"].items():
        _check_keys(f"networking.nftables.tables.{name}", table, {"content", "family", "name"}, {"enable": (True,)})
        head = f"table {table['family']} {table['name']}"
        text += f"{head}\ndelete {head}\n{head} {{\n{table['content']}\n}}\n"
    return text


@dataclass(frozen=True)
class TranslatedTunnel:
    """A WireGuard interface with the settings of its units."""

    name: str
    addresses: list[str]
    mtu: int | None
    private_key_file: str
    generates_key: bool
    interface: list[str]
    """Arguments of ``wg set NAME``, without those of the private key."""
    peers: list[list[str]]
    """Arguments of ``wg set NAME`` for each peer."""
    routes: list[str] = field(default_factory=list)


def tunnel(values: Mapping[str, Any], name: str = "wg0") -> TranslatedTunnel:
    """Return the interface ``name``."""
    interfaces = values["networking.wireguard.interfaces"]
    path = "networking.wireguard.interfaces"
    _check_keys(path, interfaces, {name}, {})
    interface = interfaces[name]
    supported = {
        "ips",
        "listenPort",
        "mtu",
        "privateKeyFile",
        "generatePrivateKeyFile",
        "peers",
        "allowedIPsAsRoutes",
    }
    hooks = dict.fromkeys(("preSetup", "postSetup", "preShutdown", "postShutdown"), ("",))
    absent = ("fwMark", "interfaceNamespace", "socketNamespace", "metric", "privateKey", "type", "extraOptions")
    idle = {"dynamicEndpointRefreshSeconds": (0,), "table": ("main",), **hooks, **dict.fromkeys(absent, (None,))}
    _check_keys(f"{path}.{name}", interface, supported, idle)
    peers: list[list[str]] = []
    routes: list[str] = []
    for peer in interface["peers"]:
        absent_keys = ("presharedKey", "dynamicEndpointRefreshRestartSeconds")
        peer_keys = {"name", "publicKey", "presharedKeyFile", "endpoint", "persistentKeepalive", "allowedIPs"}
        _check_keys(f"{path}.{name}.peers", peer, peer_keys, dict.fromkeys(absent_keys, (None,)))
        argv = ["peer", peer["publicKey"]]
        for option, key in (
            ("preshared-key", "presharedKeyFile"),
            ("endpoint", "endpoint"),
            ("persistent-keepalive", "persistentKeepalive"),
        ):
            argv += [option, str(peer[key])] if peer[key] is not None else []
        peers.append([*argv, "allowed-ips", ",".join(peer["allowedIPs"])])
        routes += peer["allowedIPs"] if interface["allowedIPsAsRoutes"] else []
    port = interface["listenPort"]
    return TranslatedTunnel(
        name, interface["ips"], interface["mtu"], interface["privateKeyFile"], interface["generatePrivateKeyFile"],
        ["listen-port", str(port)] if port is not None else [], peers, routes,
    )  # fmt: skip


@dataclass(frozen=True)
class NginxPaths:
    """Folders and listening addresses of nginx."""

    certificates: str = "/var/lib/acme"
    runtime: str = "/run/nginx"
    http: tuple[str, ...] = ("0.0.0.0:80", "[::0]:80")
    https: tuple[str, ...] = ("0.0.0.0:443", "[::0]:443")


MOZILLA = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:"
    "DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384:DHE-RSA-CHACHA20-POLY1305"
)
"""Default of services.nginx.sslCiphers in NixOS: the intermediate list of Mozilla."""


def nginx(values: Mapping[str, Any], places: NginxPaths) -> str:
    """Return nginx.conf in the order in which NixOS writes it."""
    runtime = places.runtime
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    http = [
        f"access_log {runtime}/access.log;",
        *(f"{kind}_temp_path {runtime}/{kind};" for kind in kinds),
        "default_type application/octet-stream;",
        *(_upstream(name, upstream) for name, upstream in values.get("services.nginx.upstreams", {}).items()),
        "ssl_protocols TLSv1.2 TLSv1.3;",
        f"ssl_ciphers {MOZILLA};",
    ]
    if values.get("services.nginx.recommendedTlsSettings", False):
        http += ["ssl_session_timeout 1d;", "ssl_session_cache shared:SSL:10m;", "ssl_session_tickets off;"]
        http += ["ssl_prefer_server_ciphers off;"]
    http += ["map $http_upgrade $connection_upgrade {\ndefault upgrade;\n'' close;\n}"]
    http += [f"client_max_body_size {values.get('services.nginx.clientMaxBodySize', '10m')};"]
    http += [f"server_tokens {'on' if values.get('services.nginx.serverTokens', False) else 'off'};"]
    http += [values.get("services.nginx.commonHttpConfig", "")]
    for name, virtual in values["services.nginx.virtualHosts"].items():
        http += _servers(name, virtual, places)
    head = f"pid {runtime}/nginx.pid;\nerror_log {runtime}/error.log;\ndaemon off;\n"
    events = _block("events", [values.get("services.nginx.eventsConfig", "")])
    return "\n".join([head, events, _block("http", http), values.get("services.nginx.appendConfig", "")])


def _upstream(name: str, upstream: Mapping[str, Any]) -> str:
    path = f"services.nginx.upstreams.{name}"
    _check_keys(path, upstream, {"servers", "extraConfig"}, {})
    lines = []
    for address, server in upstream["servers"].items():
        words = ["backup"] if server.get("backup") else []
        words += [f"{key}={value}" for key, value in server.items() if key != "backup"]
        lines.append(" ".join(["server", address, *words]) + ";")
    return "\n".join([f"upstream {name} {{", *lines, upstream["extraConfig"], "}"])


def _servers(name: str, virtual: Mapping[str, Any], places: NginxPaths) -> list[str]:
    """Return the server blocks of a virtual host: the redirect from plain HTTP, and its own."""
    path = f"services.nginx.virtualHosts.{name}"
    supported = {"default", "rejectSSL", "forceSSL", "enableACME", "acmeRoot", "http2", "locations", "extraConfig"}
    off = ("addSSL", "onlySSL", "quic", "kTLS", "reuseport")
    none = ("acmeFallbackHost", "basicAuthFile", "globalRedirect", "root", "serverName", "useACMEHost")
    idle: dict[str, tuple[object, ...]] = {
        **dict.fromkeys(off, (False,)), **dict.fromkeys(none, (None,)), "basicAuth": ({},), "listen": ([],),
        "listenAddresses": ([],), "redirectCode": (301,), "serverAliases": ([],), "sslTrustedCertificate": (None,),
        "http3": (True, False), "http3_hq": (False,),  # of QUIC, which is off
    }  # fmt: skip
    _check_keys(path, virtual, supported, idle)
    has_ssl = virtual["forceSSL"]
    default = " default_server" if virtual["default"] else ""
    http2 = " http2" if virtual["http2"] and has_ssl else ""
    secure = [f"listen {a} ssl{http2}{default};" for a in places.https] if has_ssl or virtual["rejectSSL"] else []
    plain = [f"listen {a}{default};" for a in places.http]
    challenge = []
    if virtual["enableACME"]:
        inner = f"root {virtual['acmeRoot']};\nauth_basic off;\nauth_request off;"
        challenge = [f"location ^~ /.well-known/acme-challenge/ {{\n{inner}\n}}"]
    blocks = []
    if virtual["forceSSL"]:
        redirect = "location / {\nreturn 301 https://$host$request_uri;\n}"
        blocks.append(_block("server", [*plain, f"server_name {name};", *challenge, redirect]))
    own = [*secure, *([] if virtual["forceSSL"] else plain), f"server_name {name};", *challenge]
    if has_ssl:
        folder = f"{places.certificates}/{name}"
        own += [f"ssl_certificate {folder}/fullchain.pem;", f"ssl_certificate_key {folder}/key.pem;"]
    if virtual["rejectSSL"]:
        own.append("ssl_reject_handshake on;")
    by_priority = sorted(virtual["locations"].items(), key=lambda item: item[1]["priority"])
    own += [_location(f"{path}.locations.{key}", key, location) for key, location in by_priority]
    return [*blocks, _block("server", [*own, virtual["extraConfig"]])]


def _location(option: str, path: str, location: Mapping[str, Any]) -> str:
    none = ("alias", "basicAuthFile", "index", "root", "tryFiles")
    idle: dict[str, tuple[object, ...]] = {
        **dict.fromkeys(none, (None,)), "basicAuth": ({},), "fastcgiParams": ({},), "proxyWebsockets": (False,)
    }  # fmt: skip
    _check_keys(option, location, {"proxyPass", "return", "extraConfig", "priority"}, idle)
    inner = [f"proxy_pass {location['proxyPass']};"] if location["proxyPass"] else []
    inner += [f"return {location['return']};"] if location["return"] else []
    return _block(f"location {path}", [*inner, location["extraConfig"]])


def _block(head: str, lines: list[str]) -> str:
    return "\n".join([f"{head} {{", *lines, "}"])


@dataclass(frozen=True)
class TranslatedUnit:
    """A service of ours: its order, its requirements and its command."""

    name: str
    after: frozenset[str]
    requires: frozenset[str]
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def units(values: Mapping[str, Any]) -> dict[str, TranslatedUnit]:
    """Return the services that affect the network, including those of NixOS."""
    services = values.get("systemd.services", {})
    found = {name: _unit(name, {}) for name in ("nftables", "wireguard-wg0")}
    # Orderings of nixpkgs: nftables before network-pre.target, the interface after it.
    ordered = {"wireguard-wg0": {"nftables"}}
    if values.get("services.nginx.enable", False):
        found["nginx"] = _unit("nginx", {})
        ordered["nginx"] = {"wireguard-wg0"}
    ours = ("appliance-gateway", "appliance-engine-", "appliance-tunnel-watch-")
    for name, service in services.items():
        if name in found or name.startswith(ours):
            found[name] = _unit(name, service)
    return {
        name: TranslatedUnit(
            name, unit.after | ordered.get(name, set()), unit.requires, unit.command, unit.environment
        )
        for name, unit in found.items()
    }


def _unit(name: str, service: Mapping[str, Any]) -> TranslatedUnit:
    def named(*keys: str) -> frozenset[str]:
        texts = [text for key in keys for text in service.get(key) or []]
        return frozenset(re.sub(r"\.service$", "", text) for text in texts)

    command = str((service.get("serviceConfig") or {}).get("ExecStart", ""))
    environment = {key: str(value) for key, value in (service.get("environment") or {}).items()}
    return TranslatedUnit(name, named("after"), named("requires", "bindsTo"), tuple(command.split()), environment)
