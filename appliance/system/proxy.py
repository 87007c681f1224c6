"""Route to a server: direct, or through the HTTP proxy that the environment names.

One rule for the load, the list of models, the metrics and the tokenizer, so that all of them reach the same server:

* a loopback address is reached directly, under any name;
* any other address follows ``http_proxy``, ``https_proxy`` and ``all_proxy``, in either case, and ``no_proxy``.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import ipaddress
import socket
import threading
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from appliance.errors import UsageError

RESOLVE_S = 1.0
"""Timeout of the name resolution that finds loopback names, in seconds."""
HEAD_LIMIT = 65536
"""Upper limit of the head of a proxy's response, in bytes."""


class ProxyRefusedError(ConnectionError):
    """The proxy did not open a tunnel."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. ``authorization`` is the value of its ``Proxy-Authorization`` header, empty without a user."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class ServerRoute:
    """A server and the route to it. ``base`` is the path of its URL without a trailing slash."""

    scheme: str
    host: str
    port: int
    authority: str
    base: str
    proxy: Proxy | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Additional headers of a request on this route."""
        if self.proxy is None or self.scheme != "http" or not self.proxy.authorization:
            return {}
        return {"Proxy-Authorization": self.proxy.authorization}

    def target(self, path: str) -> str:
        """Return the request target for ``path`` of this server."""
        absolute = f"http://{self.authority}" if self.proxy is not None and self.scheme == "http" else ""
        return f"{absolute}{self.base}{path}"

    def connect(self, timeout_s: float) -> socket.socket:
        """Return a TCP connection to the server, directly or through a tunnel; the caller adds TLS.

        Raises :class:`OSError`, and :class:`ProxyRefusedError` if the proxy opens no tunnel.
        """
        near = self if self.proxy is None else self.proxy
        connection = socket.create_connection((near.host, near.port), timeout=timeout_s)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.proxy is not None and self.scheme == "https":
                _tunnel(connection, self, self.proxy)
        except BaseException:
            connection.close()
            raise
        return connection

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """Return the same connection for :mod:`http.client`, with TLS; it opens with the first request."""
        near = self if self.proxy is None else self.proxy
        kind = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        connection = kind(near.host, near.port, timeout=timeout_s)
        if self.proxy is not None and self.scheme == "https":
            more = {"Proxy-Authorization": self.proxy.authorization} if self.proxy.authorization else {}
            connection.set_tunnel(self.host, self.port, more)
        return connection


def route(url: str, *, direct: bool = False) -> ServerRoute:
    """Return the route to ``url``, without a proxy if ``direct``.

    Raises :class:`UsageError` for an address or a proxy that is not valid.
    """
    parts = _split(url, url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url} is not a valid address; write it as http://HOST:PORT or https://HOST")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    authority = parts.netloc.rpartition("@")[2]
    proxy = None if direct else _proxy(parts.scheme, parts.hostname, port)
    return ServerRoute(parts.scheme, parts.hostname, port, authority, parts.path.rstrip("/"), proxy)


def opener(url: str) -> urllib.request.OpenerDirector:
    """Return urllib's opener for ``url``, for servers whose redirects must be followed."""
    host = urlsplit(url).hostname or ""
    direct = [urllib.request.ProxyHandler({})] if is_loopback(host) else []
    return urllib.request.build_opener(*direct)


@functools.cache
def is_loopback(host: str) -> bool:
    """Return whether ``host``, a name or an address in any spelling, is this machine's loopback."""
    if host.lower().rstrip(".") == "localhost" or host.lower().rstrip(".").endswith(".localhost"):
        return True
    found: set[str] = set()

    def resolve() -> None:
        # No result: only the proxy can resolve the name, or nothing can.
        with contextlib.suppress(OSError, UnicodeError):
            found.update(str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))

    # In networks that reach others only through a proxy, a resolver often times out after ten seconds or more.
    resolving = threading.Thread(target=resolve, daemon=True)
    resolving.start()
    resolving.join(RESOLVE_S)
    return bool(found) and all(_loops(ipaddress.ip_address(one.partition("%")[0])) for one in [*found])


def _loops(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    # The kernel treats the unspecified address as loopback.
    return any(one.is_loopback or one.is_unspecified for one in (address, mapped) if one is not None)


def _split(url: str, subject: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{subject} is not a valid address ({error})") from None
    return parts


def _proxy(scheme: str, host: str, port: int) -> Proxy | None:
    table = urllib.request.getproxies_environment()
    found = table.get(scheme) or table.get("all")
    if not found or _bypassed(host, port, table) or is_loopback(host):
        return None
    # Never show its whole address, which may hold a password.
    parts = _split(found if "://" in found else f"http://{found}", f"the environment's proxy for {scheme}")
    if parts.scheme != "http" or not parts.hostname:
        kind = f"{parts.scheme}://{parts.hostname or ''}"
        raise UsageError(f"the proxy {kind} of the environment is not an HTTP proxy; add {host} to no_proxy")
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    basic = f"Basic {base64.b64encode(user.encode()).decode()}" if user != ":" else ""
    return Proxy(parts.hostname, parts.port or 80, basic)


def _bypassed(host: str, port: int, table: dict[str, str]) -> bool:
    if urllib.request.proxy_bypass_environment(f"{host}:{port}", table):  # type: ignore[attr-defined]
        return True
    for word in table.get("no", "").replace(",", " ").split():
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(word, strict=False):
                return True
        except ValueError:
            # A name: urllib has compared it above.
            continue
    return False


def _tunnel(connection: socket.socket, server: ServerRoute, proxy: Proxy) -> None:
    name = f"[{server.host}]" if ":" in server.host else server.host
    lines = [f"CONNECT {name}:{server.port} HTTP/1.1", f"Host: {name}:{server.port}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head:
        # Byte by byte: the bytes after the head belong to the server.
        piece = connection.recv(1)
        if not piece or len(head) > HEAD_LIMIT:
            raise ProxyRefusedError(f"{proxy.host}:{proxy.port} closed the connection")
        head += piece
    words = head.split(b"\r\n", 1)[0].split(None, 2)
    if len(words) < 2 or words[1] != b"200":
        raise ProxyRefusedError(f"{proxy.host}:{proxy.port} returned {head.splitlines()[0].decode('latin1')}")
