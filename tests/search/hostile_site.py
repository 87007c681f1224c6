"""A web site on 127.0.0.2 whose paths are the attacks of hostile pages, and a private service on 127.0.0.1.

The fetcher of the tests may dial 127.0.0.2 and no other loopback address, so 127.0.0.1 is the private network.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network

from appliance.search.address_rule import AddressRule
from appliance.search.checked_dialer import CheckedDialer
from appliance.search.page_download import DownloadLimits, PageDownloader
from appliance.search.page_reader import PageReader

PUBLIC, PRIVATE = "127.0.0.2", "127.0.0.1"
RULE = AddressRule(exempt=[ip_network(f"{PUBLIC}/32")])
PAGE = (
    b"<html><head><title>Capitals &amp; rivers</title><script>alert(1)</script></head>"
    b"<body><h1>Capitals</h1><p>Rome is the capital of <b>Italy</b>.</p></body></html>"
)
BOMB = gzip.compress(bytes(64 * 2**20), 9)


@dataclass
class HostileSite:
    """The running site: its ports, and the requests that each address received."""

    port: int = 0
    private_port: int = 0
    seen: list[str] = field(default_factory=list)
    """Request heads of the public address."""
    private_seen: list[str] = field(default_factory=list)
    blocked: bool = False
    """Whether its own search, ``/index``, refuses robots."""
    names: dict[str, list[Sequence[str]]] = field(default_factory=dict)
    """Addresses of a name, a list a look-up; the last one repeats."""

    def url(self, path: str, host: str = "site.example", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def resolve(self, host: str) -> Sequence[str]:
        """The resolver of the tests."""
        found = self.names.get(host, [[PUBLIC]] if host.endswith(".example") else [])
        return found.pop(0) if len(found) > 1 else found[0] if found else []

    def reader(self, limits: DownloadLimits | None = None, tls: ssl.SSLContext | None = None) -> PageReader:
        """Return a reader that may dial the public address and the ports of both services."""
        limits = limits or DownloadLimits(seconds=60.0)
        dialer = CheckedDialer(RULE, self.resolve)
        ports = [self.port, self.private_port]
        return PageReader(PageDownloader(dialer, tls or ssl.create_default_context(), limits, ports), limits)


Writing = Callable[[asyncio.StreamWriter, HostileSite], Awaitable[None]]


def page(body: bytes, kind: str = "text/html; charset=utf-8", *headers: str) -> bytes:
    """Return a whole response."""
    lines = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(place: str) -> bytes:
    """Return a redirect to ``place``."""
    return f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()


async def _endless(writer: asyncio.StreamWriter, head: bytes, piece: bytes, pause: float = 0.0) -> None:
    writer.write(head)
    while True:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(pause)


HTML = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"


async def _respond(path: str, writer: asyncio.StreamWriter, site: HostileSite) -> None:
    whole: dict[str, bytes] = {
        "/page": page(PAGE),
        "/gzip": page(gzip.compress(PAGE), "text/html", "Content-Encoding: gzip"),
        "/cyrillic": page(
            "<title>Река</title><p>Москва стоит на реке.</p>".encode("cp1251"), "text/html; charset=windows-1251"
        ),
        "/json": page(b'{"capital": "Rome"}', "application/json"),
        "/cookie": page(b"Rome", "text/plain", "Set-Cookie: session=1"),
        "/moved": redirect("/page"),
        "/to-private": redirect(f"http://{PRIVATE}:{site.private_port}/secret"),
        "/to-mapped": redirect(f"http://[::ffff:{PRIVATE}]:{site.private_port}/secret"),
        "/to-file": redirect("file:///etc/passwd"),
        "/to-user": redirect(f"http://user:secret@site.example:{site.port}/page"),
        "/to-other": redirect(f"http://other.example:{site.port}/page"),
        "/loop": redirect("/loop"),
        "/nowhere": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        "/image": page(b"\x89PNG", "image/png"),
        "/pdf-as-html": page(b"%PDF-1.7 not a page", "text/html"),
        "/binary-as-html": page(b"\x89PNG\r\n\x1a\n" + bytes(100), "text/html"),
        "/no-type": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        "/brotli": page(b"\x00", "text/html", "Content-Encoding: br"),
        "/twice": page(b"\x00", "text/html", "Content-Encoding: gzip, gzip"),
        "/damaged": page(b"\x1f\x8b\x08\x00garbage", "text/html", "Content-Encoding: gzip"),
        "/bomb": page(BOMB, "text/html", "Content-Encoding: gzip"),
        "/large": page(b"x" * 200_000),
        "/missing": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        "/garbage": b"\x16\x03\x01 this is not HTTP\r\n\r\n",
        "/deep": page(b"<div>" * 3000 + b"deep"),
    }
    if path.startswith("/index"):
        writer.write(_index(path, site))
    elif path in whole:
        writer.write(whole[path])
        await writer.drain()
    elif path == "/endless-body":
        await _endless(writer, HTML + b"\r\n", b"x" * 65536)
    elif path == "/endless-headers":
        await _endless(writer, HTML, b"X-Filler: " + b"x" * 1000 + b"\r\n")
    elif path == "/drip":
        await _endless(writer, HTML + b"\r\n", b"x", 0.05)
    elif path == "/silent":
        await asyncio.sleep(3600)
    else:
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


def _index(path: str, site: HostileSite) -> bytes:
    """Return the results of the site's own search, which finds one page."""
    if site.blocked:
        return b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
    found = {"url": site.url("/page"), "title": "Capitals", "text": "Rome is the capital of Italy."}
    results = [found] if "capital" in path else []
    return page(json.dumps({"results": results}).encode(), "application/json")


@asynccontextmanager
async def hostile_site(tls: ssl.SSLContext | None = None) -> AsyncIterator[HostileSite]:
    """Run the site and the private service."""
    site = HostileSite()

    async def public(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            site.seen.append(head)
            await _respond(head.split()[1], writer, site)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def private(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        site.private_seen.append(f"{writer.get_extra_info('peername')}")
        writer.write(page(b"<p>the secret of the private network</p>"))
        writer.close()

    outer = await asyncio.start_server(public, PUBLIC, 0, ssl=tls)
    inner = await asyncio.start_server(private, PRIVATE, 0)
    site.port = outer.sockets[0].getsockname()[1]
    site.private_port = inner.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        outer.close()
        inner.close()
