"""A client on the Internet: HTTPS over the sockets of a machine, whole responses and streams."""

from __future__ import annotations

import asyncio
import copy
import json
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import Any

from tests.conftest import Response
from tests.network.machine import NetworkMachine

PATH = "/v1/chat/completions"


@dataclass
class Stream:
    """A streamed response with the arrival times of its events, by ``time.monotonic``."""

    sent: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    events: list[tuple[float, str]] = field(default_factory=list)
    ended: bool = False
    """Whether the end of the HTTP response arrived."""
    error: str = ""
    """The error that ended it early."""

    @property
    def done(self) -> bool:
        """Return whether the response is complete: ``[DONE]``, and the end of HTTP."""
        return self.ended and bool(self.events) and self.events[-1][1] == "[DONE]"

    @property
    def tokens(self) -> list[tuple[float, str]]:
        """Return the arrival time and the text of each token."""
        chunks = [(when, json.loads(data)) for when, data in self.events if data.startswith("{")]
        deltas = [(when, choice["delta"]) for when, chunk in chunks for choice in chunk.get("choices", [])]
        return [(when, delta["content"]) for when, delta in deltas if delta.get("content")]

    @property
    def ttft_s(self) -> float:
        """Return the seconds to the first token."""
        return self.tokens[0][0] - self.sent


class NetworkClient:
    """A machine with the name of the edge, its certificate authority, and the keys of some users.

    User ``n`` has a separate key and address, like users on the Internet.
    """

    def __init__(
        self, machine: NetworkMachine, authority: str, domain: str, edge: str, addresses: list[str]
    ) -> None:
        self.machine = machine
        self.domain = domain
        self.edge = edge
        self.port = 443
        self.tls = True
        self.addresses = addresses
        self.keys: list[str] = []
        self.trust = ssl.create_default_context(cadata=authority)

    def on_machine(self, machine: NetworkMachine, server: str, port: int) -> NetworkClient:
        """Return a client with the same users on another machine, which connects to ``server`` without TLS."""
        other = copy.copy(self)
        other.machine, other.edge, other.port, other.tls, other.addresses = (
            machine,
            server,
            port,
            False,
            ["0.0.0.0"],
        )
        return other

    def connect(
        self, edge: str | None = None, *, port: int | None = None, user: int = 0, name: str | None = None,
        tls: bool | None = None, context: ssl.SSLContext | None = None, timeout: float = 30,
    ) -> socket.socket:  # fmt: skip
        """Return a connection to an edge; ``name`` is the server name in the handshake."""
        family = socket.AF_INET6 if ":" in (edge or self.edge) else socket.AF_INET
        plain = self.machine.socket(family)
        try:
            plain.settimeout(timeout)
            if family == socket.AF_INET:
                plain.bind((self.addresses[user % len(self.addresses)], 0))
            plain.connect((edge or self.edge, port or self.port))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not (self.tls if tls is None else tls):
                return plain
            return (context or self.trust).wrap_socket(plain, server_hostname=name or self.domain)
        except BaseException:
            plain.close()
            raise

    def head(
        self, method: str, path: str, body: bytes | None, user: int, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return the head of a request."""
        all_headers = {"Host": self.domain, "Authorization": f"Bearer {self.key(user)}"}
        if body is not None:
            all_headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        all_headers |= headers or {}
        lines = [f"{method} {path} HTTP/1.1", *(f"{key}: {value}" for key, value in all_headers.items() if value)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def key(self, user: int) -> str:
        """Return the key of a user."""
        return self.keys[user % len(self.keys)]

    def request(
        self, method: str, path: str, body: object = None, *, user: int = 0,
        headers: Mapping[str, str] | None = None, **connection: Any,
    ) -> Response:  # fmt: skip
        """Send one request on a new connection and return the response."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        with self.connect(user=user, **connection) as channel:
            channel.sendall(
                self.head(method, path, data, user, {"Connection": "close", **(headers or {})}) + (data or b"")
            )
            with HTTPResponse(channel, method=method) as response:
                response.begin()
                found = {key.lower(): value for key, value in response.getheaders()}
                return Response(response.status, found, response.read())

    def get(self, path: str, **how: Any) -> Response:
        """Send a GET request."""
        return self.request("GET", path, **how)

    def post(self, path: str, body: object, **how: Any) -> Response:
        """Send a POST request."""
        return self.request("POST", path, body, **how)

    async def stream(
        self, body: Mapping[str, object], *, user: int = 0, edge: str | None = None,
        headers: Mapping[str, str] | None = None, into: Stream | None = None,
    ) -> Stream:  # fmt: skip
        """Send a streamed chat and read it as it arrives; ``into`` has the events so far.

        A connection that ends early raises nothing: ``ended`` stays false. A failed connection attempt raises.
        """
        seen = into if into is not None else Stream()
        loop = asyncio.get_running_loop()
        plain = self.machine.socket()
        plain.setblocking(False)
        plain.bind((self.addresses[user % len(self.addresses)], 0))
        named = self.domain if self.tls else None
        try:
            await loop.sock_connect(plain, (edge or self.edge, self.port))
            context = self.trust if self.tls else None
            reader, writer = await asyncio.open_connection(sock=plain, ssl=context, server_hostname=named)
        except BaseException:
            plain.close()
            raise
        try:
            data = json.dumps({**body, "stream": True}).encode()
            seen.sent = time.monotonic()
            writer.write(self.head("POST", PATH, data, user, {"Connection": "close", **(headers or {})}) + data)
            await _read(reader, seen)
        except (asyncio.IncompleteReadError, OSError) as error:
            seen.error = repr(error)
        finally:
            writer.transport.abort()
        return seen

    async def streams(self, bodies: Sequence[Mapping[str, object]], **how: Any) -> list[Stream]:
        """Send many streams at once, each of another user while there are enough."""
        requests = (self.stream(body, user=number, **how) for number, body in enumerate(bodies))
        return await asyncio.gather(*requests)


async def _read(reader: asyncio.StreamReader, seen: Stream) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
    seen.status = int(head[0].split()[1])
    seen.headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
    if seen.headers.get("transfer-encoding") != "chunked":
        seen.body = await reader.readexactly(int(seen.headers.get("content-length", "0")))
        seen.ended = True
        return
    rest = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        piece = await reader.readexactly(size + 2)
        now = time.monotonic()
        seen.body += piece[:-2]
        *whole, rest = (rest + piece[:-2]).split(b"\n\n")
        seen.events += [(now, part[6:].decode()) for part in whole if part.startswith(b"data: ")]
    await reader.readexactly(2)
    seen.ended = True


def chat(directive: str = "", **more: Any) -> dict[str, Any]:
    """Return a chat for the model of hosts/gpu.nix; ``directive`` is for the mock engine."""
    text = f"fake:{directive}" if directive else "hi"
    return {"model": "qwen3-30b", "messages": [{"role": "user", "content": text}], **more}
