"""Our own pooled HTTP/1.1 client for engines, on asyncio.Protocol and httptools.

What one socket read delivered is handed on as one piece, by a call and without a task or a future: a
general-purpose client costs 5 to 40 times as much per request (docs/decisions/0003 and 0006). It speaks to
engines on loopback only, and knows just what they need: POST, a JSON body, a streamed answer.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools

from appliance.errors import EngineFailedError, EngineTimeoutError, EngineUnavailableError, RequestError
from appliance.http1.writer import WriteCoalescer

SWEEP_S = 0.5
"""How often deadlines are looked at: one timer for the pool, none per read."""


class Sink(Protocol):
    """Who takes an engine's answer, in this order: a head, pieces, then an end; or a failure at any time."""

    def on_head(self, status: int, content_type: bytes) -> None:
        """The answer begins."""

    def on_data(self, data: bytes) -> None:
        """A piece of its body."""

    def on_end(self) -> None:
        """The answer is whole, and its connection back in the pool."""

    def on_failure(self, failure: RequestError) -> None:
        """There will be no (more) answer."""

    def crashed(self, error: Exception) -> None:
        """One of the events above raised ``error``; its connection is closed, and no further event comes."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to an engine; answers one request at a time."""

    __slots__ = (
        "_begun",
        "_clean",
        "_complete",
        "_content_type",
        "_parser",
        "_parts",
        "_paused",
        "_pool",
        "_reused",
        "_transport",
        "deadline",
        "keep_alive",
        "received",
        "request",
        "sink",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self.sink: Sink | None = None
        self.request = b""
        self._reused = False
        self._reset()

    def _reset(self) -> None:
        self._content_type = b""
        self._begun = False
        self._clean = True
        self._complete = False
        self._paused = False
        self.keep_alive = True
        self.received = False
        self.deadline = 0.0

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; asyncio has set TCP_NODELAY."""
        # A cast: uvloop's transports only look like asyncio.Transport.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Feed the parser and hand on what came."""
        if self.sink is None:
            # Nobody asked anything: an engine that talks unasked is not to be believed the next time.
            self.close()
            return
        self.received = True
        pool = self._pool
        # The sweep's time may be one sweep old: an engine gets its whole time, and a sweep more at most.
        self.deadline = pool.time + pool.silence_s + SWEEP_S
        sink = self.sink
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._crash(sink, error)
            return
        except httptools.HttpParserError as error:
            if not self._complete:
                self.fail(EngineFailedError(f"the engine did not answer in HTTP ({error}); see its log"))
                return
            # The answer is whole; the bytes after it end the connection and not the answer.
            self._clean = False
        parts = self._parts
        try:
            if parts:
                self._parts = []
                if self.sink is not None:
                    self.sink.on_data(parts[0] if len(parts) == 1 else b"".join(parts))
            if self._complete:
                self._end()
        except Exception as error:  # noqa: BLE001 - the boundary of one answer
            self._crash(sink, error)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """An answer cut short is a failure, an idle connection closed is not."""
        self.keep_alive = False
        self._pool.lost(self)
        if self.sink is not None and not self._complete:
            if self._reused and not self.received:
                # It was idle and the engine had closed it just before: nothing was read of the request.
                self._pool.again(self)
            else:
                self.fail(EngineFailedError("the engine closed the connection before its answer was complete"))

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Note bytes after the end of the answer: the next request must not read them as its own."""
        if self._complete:
            self._clean = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the engine's headers only the content type concerns a client."""
        if len(name) == 12 and name.lower() == b"content-type":
            self._content_type = value

    def on_headers_complete(self) -> None:
        """Tell the status, but for an interim one."""
        status = self._parser.get_status_code()
        if status >= 200 and not self._complete:
            self._begun = True
            if self.sink is not None:
                self.sink.on_head(status, self._content_type)

    def on_body(self, data: bytes) -> None:
        """Keep a piece until the read it came with is parsed; bytes of a second answer belong to nothing."""
        if not self._complete:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        """The answer is whole, as HTTP sees it."""
        if self._begun:
            self._complete = True
            self.keep_alive = self._parser.should_keep_alive()

    # What the gateway calls.

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on it: it is open, it is read, and nothing of an answer is left."""
        return self.keep_alive and self._clean and not self._paused and not self._transport.is_closing()

    def send(self, sink: Sink, request: bytes, first_byte_s: float, *, reused: bool) -> None:
        """Send one request, given as bytes; ``sink`` gets its answer."""
        self._reset()
        self.sink = sink
        self.request = request
        self._reused = reused
        self.deadline = self._pool.now() + first_byte_s
        self._pool.outbox.write(self._transport, request)

    def pause(self) -> None:
        """Read nothing more: the client lags. The engine's own buffers fill, then it waits.

        Counts for the answer that runs, and ends with it.
        """
        if not self._paused and self.sink is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self.deadline = self._pool.now() + self._pool.silence_s
            self._transport.resume_reading()

    def abandon(self) -> None:
        """The answer is not wanted any more: the engine sees the connection close and stops generating."""
        self.sink = None
        self._pool.forget(self)
        self.close()

    def close(self) -> None:
        """Close it at once."""
        self.keep_alive = False
        self._transport.abort()

    def fail(self, failure: RequestError) -> None:
        """Give up, and tell who waits."""
        sink, self.sink = self.sink, None
        self._pool.forget(self)
        self.close()
        if sink is not None:
            sink.on_failure(failure)

    def expire(self, now: float) -> None:
        """Fail when the engine owes us bytes since before ``now``; not while we do not read."""
        if now > self.deadline and not self._paused and self.sink is not None:
            what = "go on with its answer" if self._begun else "begin its answer"
            self.fail(EngineTimeoutError(f"the engine did not {what} in time; see its log"))

    def _crash(self, sink: Sink | None, error: Exception) -> None:
        """Report an error of the sink's own to it, and to nothing else."""
        self.abandon()
        if sink is not None:
            cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
            sink.crashed(cause if isinstance(cause, Exception) else error)

    def _end(self) -> None:
        sink, self.sink = self.sink, None
        if self._paused:
            # The client of this answer lags. That holds back its own requests, and never the next one's.
            self.resume()
        self._pool.release(self)
        if sink is not None:
            sink.on_end()


class Pool:
    """Connections to one engine replica."""

    def __init__(
        self,
        port: int,
        outbox: WriteCoalescer,
        *,
        connect_timeout_s: float,
        first_byte_timeout_s: float,
        stall_timeout_s: float,
    ) -> None:
        self.port = port
        self.outbox = outbox
        self.silence_s = stall_timeout_s
        self._connect_s = connect_timeout_s
        self._first_byte_s = first_byte_timeout_s
        self._idle: list[UpstreamConnection] = []
        self._busy: set[UpstreamConnection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._host = b"host: 127.0.0.1:%d\r\ncontent-type: application/json\r\n" % port
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self.time = 0.0
        """The loop's time at the last sweep: near enough for deadlines of seconds, and free to read."""

    def post(self, sink: Sink, path: bytes, body: bytes, header: bytes) -> UpstreamConnection | asyncio.Task[None]:
        """POST ``body`` to ``path``; ``header`` is one further header line without its end.

        Returns what :func:`cancel` takes: the connection, or the task that opens one. The sink hears of
        :class:`EngineUnavailableError` where nothing listens, else of :class:`EngineFailedError` and
        :class:`EngineTimeoutError`. A kept-alive connection that the engine closed just before is replaced by a
        fresh one.
        """
        request = b"POST %s HTTP/1.1\r\n%s%s\r\ncontent-length: %d\r\n\r\n%s" % (
            path,
            self._host,
            header,
            len(body),
            body,
        )
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.reusable:
                self._begin(connection, sink, request, reused=True)
                return connection
        return self._open(sink, request, self._first_byte_s)

    async def probe(self, path: bytes, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        """One whole exchange on a connection of its own: ``(status, body)``; for canaries."""
        sink = _Collect(self._loop.create_future())
        request = b"POST %s HTTP/1.1\r\n%sconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (
            path,
            self._host,
            len(body),
            body,
        )
        task = self._open(sink, request, timeout_s)
        try:
            async with asyncio.timeout(timeout_s + self._connect_s):
                return await sink.done
        except TimeoutError:
            raise EngineTimeoutError("the engine did not finish a token in time; see its log") from None
        finally:
            task.cancel()
            for connection in [c for c in self._busy if c.sink is sink]:
                connection.abandon()

    def again(self, connection: UpstreamConnection) -> None:
        """Send the request of a connection that turned out stale on a fresh one."""
        sink, connection.sink = connection.sink, None
        if sink is not None:
            task = self._open(sink, connection.request, self._first_byte_s)
            if isinstance(sink, UpstreamCall):
                sink.on_rebound(task)

    def release(self, connection: UpstreamConnection) -> None:
        """Take a connection back after a whole answer."""
        self._busy.discard(connection)
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection is of no more use."""
        self._busy.discard(connection)

    def lost(self, connection: UpstreamConnection) -> None:
        """The engine closed a connection, busy or idle: after a restart none of the old ones stays behind."""
        self._busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def cut(self, failure: RequestError) -> None:
        """End every answer that runs with ``failure``."""
        for connection in [*self._busy]:
            connection.fail(failure)

    def close(self) -> None:
        """Close every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for task in [*self._connecting]:
            task.cancel()
        for connection in [*self._idle, *self._busy]:
            connection.fail(EngineFailedError("the gateway is stopping"))
        self._idle.clear()

    def _begin(self, connection: UpstreamConnection, sink: Sink, request: bytes, *, reused: bool) -> None:
        self._busy.add(connection)
        if self._sweeper is None:
            self.time = self.now()
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        connection.send(sink, request, self._first_byte_s, reused=reused)

    def _open(self, sink: Sink, request: bytes, first_byte_s: float) -> asyncio.Task[None]:
        task = self._loop.create_task(self._connect(sink, request, first_byte_s))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return task

    async def _connect(self, sink: Sink, request: bytes, first_byte_s: float) -> None:
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await self._loop.create_connection(
                    lambda: UpstreamConnection(self), "127.0.0.1", self.port
                )
        except (OSError, TimeoutError) as error:
            reason = "did not accept a connection in time" if isinstance(error, TimeoutError) else "is not up"
            sink.on_failure(EngineUnavailableError(f"the engine {reason}; try again shortly", retry_after=2))
            return
        if isinstance(sink, UpstreamCall):
            sink.on_rebound(connection)
        self._begin(connection, sink, request, reused=False)
        connection.deadline = self.now() + first_byte_s

    def _sweep(self) -> None:
        self.time = now = self.now()
        for connection in [*self._busy]:
            connection.expire(now)
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if self._busy else None


class UpstreamCall:
    """A sink that wants to know on what its request travels, so that it can give it up."""

    __slots__ = ()

    def on_rebound(self, way: UpstreamConnection | asyncio.Task[None]) -> None:
        """The request is now on ``way``."""


def cancel(way: UpstreamConnection | asyncio.Task[None] | None) -> None:
    """Give up a request that :meth:`Pool.post` sent."""
    if isinstance(way, UpstreamConnection):
        way.abandon()
    elif way is not None:
        way.cancel()


class _Collect:
    """A sink that gathers a small answer into a future."""

    def __init__(self, done: asyncio.Future[tuple[int, bytes]]) -> None:
        self.done = done
        self._status = 0
        self._parts: list[bytes] = []

    def on_head(self, status: int, content_type: bytes) -> None:  # noqa: ARG002 - the protocol's signature
        self._status = status

    def on_data(self, data: bytes) -> None:
        self._parts.append(data)

    def on_end(self) -> None:
        if not self.done.done():
            self.done.set_result((self._status, b"".join(self._parts)))

    def on_failure(self, failure: RequestError) -> None:
        if not self.done.done():
            self.done.set_exception(failure)

    def crashed(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
