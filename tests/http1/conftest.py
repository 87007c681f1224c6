"""An application and its server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from appliance.errors import RequestError
from appliance.http1.server import Server
from appliance.http1.types import ClientResponder, Request, Timeouts
from appliance.http1.writer import WriteCoalescer

PATIENT = Timeouts(head_s=30, body_s=30, idle_s=30, read_s=30)


class RecordedClient:
    """Client events, as futures: a test awaits the one it expects."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.slow: asyncio.Future[None] = loop.create_future()
        self.ready: asyncio.Future[None] = loop.create_future()

    def client_disconnected(self) -> None:
        self.gone.set_result(None)

    def client_slow(self) -> None:
        self.slow.set_result(None)

    def client_ready(self) -> None:
        self.ready.set_result(None)


class EchoApplication:
    """Responds with the path and body of a request; a path of ``responses`` has its own function."""

    def __init__(self) -> None:
        self.responses: dict[str, Callable[[Request, ClientResponder], None]] = {}
        self.limit = 1000
        self.begun: Callable[[str], None] = lambda path: None
        """Called with the path of each head."""
        self.refused: dict[str, RequestError] = {}
        """By path, raised on the head."""
        self.broken: list[tuple[str, RequestError | None]] = []
        """Path and error of each request that stayed incomplete."""

    def begin(self, request: Request) -> int:
        self.begun(request.path)
        if request.path in self.refused:
            raise self.refused[request.path]
        return self.limit

    def too_large(self, request: Request, error: RequestError) -> RequestError:
        return error

    def record_incomplete(self, request: Request, error: RequestError | None) -> None:
        self.broken.append((request.path, error))

    def handle(self, request: Request, client: ClientResponder) -> None:
        echo: Callable[[Request, ClientResponder], None] = lambda request, client: client.respond(  # noqa: E731
            200, request.path.encode() + b" " + request.body, b"text/plain"
        )
        self.responses.get(request.path, echo)(request, client)

    def refuse(self, request: Request, error: RequestError, client: ClientResponder) -> None:
        client.respond(error.status, str(error).encode(), b"text/plain")

    def complete_headers(self, request: Request, headers: bytes) -> bytes:
        return headers + b"x-path: %s\r\n" % request.path.encode()


@asynccontextmanager
async def listening(
    application: EchoApplication, timeouts: Timeouts = PATIENT
) -> AsyncIterator[tuple[Server, int]]:
    """Serve ``application`` on a free port; yield the server and the port."""
    loop = asyncio.get_running_loop()
    server = Server(application, timeouts, WriteCoalescer(loop))
    sockets = await loop.create_server(server.connect, "127.0.0.1", 0)
    try:
        yield server, sockets.sockets[0].getsockname()[1]
    finally:
        sockets.close()
        server.close()
        await sockets.wait_closed()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to ``port``; the connection is aborted at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        # The transport's socket is closed in the next turn.
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` is true. The kernel and other connections change it without an event."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)


async def send(port: int, *pieces: bytes) -> bytes:
    """Send ``pieces`` on a new connection; return everything received until the server closes it."""
    async with connected(port) as (reader, writer), asyncio.timeout(10):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await reader.read()
