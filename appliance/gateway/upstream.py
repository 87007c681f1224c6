"""Our own pooled HTTP/1.1 client for engines, on asyncio.Protocol and httptools.

One wake-up per socket read, not per chunk; what one read delivered is taken as one piece. General-purpose
clients cost 5 to 40 times as much per request (docs/decisions/0003). It speaks to engines on loopback only,
and knows just what they need: POST and GET, a JSON body, a streamed answer.
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools

from appliance.errors import EngineFailedError, EngineTimeoutError, EngineUnavailableError, RequestError

HIGH_WATER = 256 * 1024
"""Bytes waiting for a slow client above which the engine's socket is no longer read."""

SWEEP_S = 0.5
"""How often deadlines are looked at: one timer for the pool, none per read."""


class Connection(asyncio.Protocol):
    """One connection to an engine; answers one request at a time.

    After :meth:`Pool.send`: ``status`` and ``content_type`` are set once :meth:`head` returned, then
    :meth:`read` gives the body piece by piece and ``b""`` at its end.
    """

    __slots__ = (
        "_loop",
        "_parser",
        "_parts",
        "_paused",
        "_size",
        "_transport",
        "_waiter",
        "_wanted",
        "complete",
        "content_type",
        "deadline",
        "failure",
        "keep_alive",
        "received",
        "silence_s",
        "status",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport
        self.failure: RequestError | None = None
        self._reset(0.0, 0.0)

    def _reset(self, first_byte_s: float, silence_s: float) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._size = 0
        self._paused = False
        self._wanted = False
        self.status = 0
        self.content_type = b""
        self.complete = False
        self.keep_alive = False
        self.received = False
        self.silence_s = silence_s
        self.deadline = self._loop.time() + first_byte_s

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; asyncio has set TCP_NODELAY."""
        # A cast: uvloop's transports only look like asyncio.Transport.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, hold the socket back when the client lags, wake the reader."""
        self.received = True
        self.deadline = self._loop.time() + self.silence_s
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(EngineFailedError(f"the engine did not answer in HTTP ({error}); see its log"))
            return
        if self._size > HIGH_WATER and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """An answer cut short is a failure, an idle connection closed is not."""
        self.keep_alive = False
        if self.failure is None and not self.complete:
            self.failure = EngineFailedError("the engine closed the connection before its answer was complete")
        self._wake()

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the engine's headers only the content type concerns a client."""
        if name.lower() == b"content-type":
            self.content_type = value

    def on_headers_complete(self) -> None:
        """Publish the status."""
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        self._parts.append(data)
        self._size += len(data)

    def on_message_complete(self) -> None:
        """The answer is whole, as HTTP sees it."""
        self.complete = True
        self.keep_alive = self._parser.should_keep_alive()

    # What the gateway calls.

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on it; not while it is held back, with bytes nobody took."""
        whole = self.complete and self.keep_alive and self.failure is None
        return whole and not self._paused and not self._transport.is_closing()

    def send(self, data: bytes, first_byte_s: float, silence_s: float) -> None:
        """Send one request, given as bytes, and expect its answer."""
        self._reset(first_byte_s, silence_s)
        self._transport.write(data)

    async def head(self) -> None:
        """Wait for the answer's status; raises the :class:`RequestError` that prevented it."""
        while self.status == 0:
            if self.failure is not None:
                raise self.failure
            await self._wait()

    async def read(self) -> bytes:
        """The next piece of the body; ``b""`` at its end. Raises the failure that cut it short."""
        while True:
            if self._parts:
                parts = self._parts
                data = parts[0] if len(parts) == 1 else b"".join(parts)
                self._parts = []
                self._size = 0
                if self._paused:
                    self._paused = False
                    self.deadline = self._loop.time() + self.silence_s
                    self._transport.resume_reading()
                return data
            if self.complete:
                return b""
            if self.failure is not None:
                raise self.failure
            await self._wait()

    def fail(self, failure: RequestError) -> None:
        """Give up: the engine sees the connection close and stops generating."""
        if self.failure is None:
            self.failure = failure
        self.keep_alive = False
        self._transport.abort()
        self._wake()

    def expire(self, now: float) -> None:
        """Fail when the engine owes us bytes since before ``now``."""
        if self._wanted and now > self.deadline:
            what = "begin its answer" if self.status == 0 else "go on with its answer"
            self.fail(EngineTimeoutError(f"the engine did not {what} in time; see its log"))

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        self._wanted = True
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._wanted = False

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Pool:
    """Connections to one engine replica."""

    def __init__(
        self, port: int, *, connect_timeout_s: float, first_byte_timeout_s: float, stall_timeout_s: float
    ) -> None:
        self.port = port
        self._connect_s = connect_timeout_s
        self._first_byte_s = first_byte_timeout_s
        self._silence_s = stall_timeout_s
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._connecting = 0
        self._host = b"host: 127.0.0.1:%d\r\ncontent-type: application/json\r\n" % port
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """Requests that the replica is at, or that are on their way to it."""
        return len(self._busy) + self._connecting

    async def send(self, path: bytes, body: bytes, request_id: bytes) -> Connection:
        """POST ``body`` to ``path`` and wait for the status of the answer.

        A kept-alive connection that the engine closed just before is tried once more on a fresh one: nothing
        of the answer had come, and the engine had not read the request. The caller must :meth:`release`.
        Raises :class:`EngineUnavailableError` where nothing listens, and the failures of :class:`Connection`.
        """
        request = self._request(path, body, b"x-request-id: " + request_id)
        connection = self._take_idle()
        if connection is not None:
            try:
                await self._begin(connection, request, self._first_byte_s)
            except EngineFailedError:
                if connection.received:
                    raise
            else:
                return connection
        connection = await self._connect()
        await self._begin(connection, request, self._first_byte_s)
        return connection

    async def probe(self, path: bytes, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        """One whole exchange on a connection of its own: ``(status, body)``; for canaries."""
        request = self._request(path, body, b"connection: close")
        connection = await self._connect()
        try:
            await self._begin(connection, request, timeout_s)
            pieces = []
            while piece := await connection.read():
                pieces.append(piece)
            return connection.status, b"".join(pieces)
        finally:
            self.release(connection)

    def release(self, connection: Connection) -> None:
        """Take the connection back: for reuse after a whole answer, closed otherwise."""
        if connection not in self._busy:
            return
        self._busy.discard(connection)
        if connection.reusable:
            self._idle.append(connection)
        elif connection.failure is None:
            connection.fail(EngineFailedError("the request was given up"))

    def close(self) -> None:
        """Close every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in [*self._idle, *self._busy]:
            connection.fail(EngineFailedError("the gateway is stopping"))
        self._idle.clear()
        self._busy.clear()

    def _request(self, path: bytes, body: bytes, header: bytes) -> bytes:
        return b"POST %s HTTP/1.1\r\n%s%s\r\ncontent-length: %d\r\n\r\n%s" % (
            path,
            self._host,
            header,
            len(body),
            body,
        )

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    async def _begin(self, connection: Connection, request: bytes, first_byte_s: float) -> None:
        self._busy.add(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        try:
            connection.send(request, first_byte_s, self._silence_s)
            await connection.head()
        except BaseException:
            self.release(connection)
            raise

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        self._connecting += 1
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(lambda: Connection(loop), "127.0.0.1", self.port)
        except (OSError, TimeoutError) as error:
            reason = "did not accept a connection in time" if isinstance(error, TimeoutError) else "is not up"
            raise EngineUnavailableError(f"the engine {reason}; try again shortly", retry_after=2) from error
        finally:
            self._connecting -= 1
        return connection

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in [*self._busy]:
            connection.expire(now)
        self._sweeper = loop.call_later(SWEEP_S, self._sweep) if self._busy else None
