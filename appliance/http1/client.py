"""A pooled HTTP/1.1 client for engines, on asyncio.Protocol and httptools.

Data of one socket read is passed on as one piece, by a call and without a task or a future. A general-purpose
client costs 5 to 40 times as much per request (docs/decisions/0003 and 0006). This one
supports POST of JSON or of a form, GET for probes, and a streamed response. It has no TLS: engines are on loopback
or in a private network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum
from typing import Protocol, cast

import httptools

from appliance.errors import EngineFailedError, EngineTimeoutError, EngineUnavailableError, RequestError
from appliance.http1.writer import WriteCoalescer

SWEEP_S = 0.5
"""Interval of the deadline checks: one timer for the pool, none per read."""


class ResponseSink(Protocol):
    """Receives an engine's response: a head, pieces, then an end; or a failure at any time."""

    def on_head(self, status: int, content_type: bytes) -> None:
        """Take the final status; an interim one is skipped."""

    def on_data(self, data: bytes) -> None:
        """Take a piece of the body."""

    def on_end(self) -> None:
        """The response is complete, and its connection back in the pool."""

    def on_failure(self, failure: RequestError) -> None:
        """Take the reason for which the response ends here, or does not begin."""

    def crashed(self, error: Exception) -> None:
        """Take the error that one of the events above raised; no further event follows."""


class CallPhase(Enum):
    """The progress of a call. The transitions::

        phase      event                                       next
        SENT       first bytes                                 RECEIVING
        SENT       its reused connection was closed: retry     SENT
        RECEIVING  final status                                BEGUN
        BEGUN      end of the response                         COMPLETE

    A failure or :meth:`UpstreamCall.cancel` ends the call in any phase.
    """

    SENT = "sent"
    RECEIVING = "receiving"
    BEGUN = "begun"
    COMPLETE = "complete"


SENT, RECEIVING, BEGUN, COMPLETE = CallPhase


class UpstreamCall:
    """One request to an engine and the state of its response; :meth:`Pool.post` returns it."""

    __slots__ = (
        "_pool",
        "connection",
        "deadline",
        "first_byte_s",
        "more",
        "paused",
        "phase",
        "request",
        "reused",
        "sink",
        "task",
    )

    def __init__(self, pool: Pool, sink: ResponseSink, request: bytes, first_byte_s: float) -> None:
        self._pool = pool
        self.sink = sink
        self.request = request
        """Head and body, to be sent again if a reused connection turns out to be closed."""
        self.more: Sequence[bytes | memoryview] = ()
        """Further pieces of a large body, which are sent once and not kept."""
        self.first_byte_s = first_byte_s
        self.task: asyncio.Task[None] | None = None
        """Opens a connection for the call."""
        self.connection: UpstreamConnection | None = None
        """Carries the call until its response ends."""
        self.reused = False
        """Whether the connection carried a call before."""
        self.phase = SENT
        self.paused = False
        """Whether the engine is not read, because the client does not read."""
        self.deadline = 0.0
        """The loop's time at which the engine is late."""

    def pause(self) -> None:
        """Stop reading the response: the engine's buffers fill, then it waits."""
        if not self.paused and self.phase is not COMPLETE:
            self.paused = True
            if self.connection is not None:
                self.connection.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.paused:
            self.paused = False
            if self.connection is not None:
                self.deadline = self._pool.now() + self._pool.stall_s
                self.connection.transport.resume_reading()

    def cancel(self) -> None:
        """Close the connection, so that the engine stops generating. No further event follows."""
        if self.task is not None:
            self.task.cancel()
        if self.connection is not None:
            self.connection.abandon()

    def expire(self, now: float) -> None:
        """Fail if the engine is late at ``now``, unless it is not read."""
        if now > self.deadline and not self.paused and self.connection is not None:
            action = "continue its response" if self.phase is BEGUN else "begin its response"
            self.connection.fail(EngineTimeoutError(f"the engine did not {action} in time; see its log"))


class UpstreamConnection(asyncio.Protocol):
    """One connection to an engine; carries one call at a time."""

    __slots__ = ("_clean", "_content_type", "_keep_alive", "_parser", "_parts", "_pool", "call", "transport")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.transport: asyncio.Transport
        self.call: UpstreamCall | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._content_type = b""
        self._parts: list[bytes] = []
        """Pieces of the body in the current read."""
        self._keep_alive = True
        self._clean = True
        """Whether no byte followed a complete response: the next call must not read it as its own."""

    def send(self, call: UpstreamCall) -> None:
        """Send ``call``; its sink gets the response."""
        pool = self._pool
        self.call = call
        self._content_type = b""
        call.connection = self
        call.deadline = pool.now() + call.first_byte_s
        pool.busy.add(self)
        if pool.sweeper is None:
            pool.sweep()
        pool.coalescer.write(self.transport, call.request)
        if call.more:
            # The collected writes precede them. They are not copied into one text: a body has megabytes.
            pool.coalescer.flush()
            for piece in call.more:
                self.transport.write(piece)
            call.more = ()
        if call.paused:
            self.transport.pause_reading()

    def fail(self, failure: RequestError) -> None:
        """Close, and report ``failure`` to the call."""
        call = self.call
        self.abandon()
        if call is not None:
            call.sink.on_failure(failure)

    def abandon(self) -> None:
        """Close without a further event."""
        self._detach()
        self.close()

    def close(self) -> None:
        """Close at once."""
        self._keep_alive = False
        self.transport.abort()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; asyncio has set TCP_NODELAY."""
        # A cast: uvloop's transports only look like asyncio.Transport.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse ``data`` and pass it on; disconnect an engine that sends without a request."""
        call = self.call
        if call is None:
            self.close()
            return
        if call.phase is SENT:
            call.phase = RECEIVING
        call.deadline = self._pool.read_deadline
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._crash(call, cause if isinstance(cause, Exception) else error)
            return
        except httptools.HttpParserError as error:
            if call.phase is not COMPLETE:
                self.fail(EngineFailedError(f"the engine did not respond in HTTP ({error}); see its log"))
                return
            # The response is complete; the bytes after it end the connection only.
            self._clean = False
        parts = self._parts
        try:
            if parts:
                self._parts = []
                if self.call is call:
                    call.sink.on_data(parts[0] if len(parts) == 1 else b"".join(parts))
            if call.phase is COMPLETE and self.call is call:
                self._end(call)
        except Exception as error:  # noqa: BLE001 - the boundary of one call
            self._crash(call, error)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Fail the call, or send it again if the engine closed an idle connection just before."""
        self._keep_alive = False
        # It holds this connection, whose memory would be free only at a later garbage collection.
        del self._parser
        self._pool.lost(self)
        call = self.call
        if call is None:
            return
        if call.reused and call.phase is SENT:
            self._detach()
            self._pool.open(call)
        else:
            self.fail(EngineFailedError("the engine closed the connection before its response was complete"))

    # Called by llhttp.

    def on_message_begin(self) -> None:
        """Note a message after the complete response."""
        if self.call is None or self.call.phase is COMPLETE:
            self._clean = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the content type, the only header that a client gets."""
        if len(name) == 12 and name.lower() == b"content-type":
            self._content_type = value

    def on_headers_complete(self) -> None:
        """Report the status, unless it is an interim one."""
        call = self.call
        status = self._parser.get_status_code()
        if status >= 200 and call is not None and call.phase is not COMPLETE:
            call.phase = BEGUN
            call.sink.on_head(status, self._content_type)

    def on_body(self, data: bytes) -> None:
        """Collect a piece of this read, unless it belongs to a message after the response."""
        if self._clean:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        """Note the end of the response."""
        call = self.call
        if call is not None and call.phase is BEGUN:
            call.phase = COMPLETE
            self._keep_alive = self._parser.should_keep_alive()

    # Inside.

    def _end(self, call: UpstreamCall) -> None:
        pool = self._pool
        self.call = call.connection = None
        pool.busy.discard(self)
        if call.paused:
            # Its client does not read. That holds back the client's own requests, not the next call.
            self.transport.resume_reading()
        if self._keep_alive and self._clean:
            pool.idle.append(self)
        else:
            self.close()
        call.sink.on_end()

    def _detach(self) -> None:
        call, self.call = self.call, None
        if call is not None:
            call.connection = None
        self._pool.busy.discard(self)

    def _crash(self, call: UpstreamCall, error: Exception) -> None:
        """Report an error of the sink's own to the sink alone."""
        self.abandon()
        call.sink.crashed(error)


class Pool:
    """Connections to one engine replica."""

    def __init__(
        self,
        port: int,
        coalescer: WriteCoalescer,
        *,
        connect_timeout_s: float,
        first_byte_timeout_s: float,
        stall_timeout_s: float,
        address: str = "127.0.0.1",
        key: str = "",
    ) -> None:
        self.port = port
        self.address = address
        self.coalescer = coalescer
        self.stall_s = stall_timeout_s
        self.busy: set[UpstreamConnection] = set()
        """Connections that carry a call."""
        self.read_deadline = 0.0
        """The deadline of a call that has just received bytes.

        Each sweep computes it, not each read: an engine gets its whole time, and one sweep more at most.
        """
        self._connect_s = connect_timeout_s
        self._first_byte_s = first_byte_timeout_s
        self.idle: list[UpstreamConnection] = []
        """Open connections that carry no call."""
        self._connecting: set[asyncio.Task[None]] = set()
        host = f"[{address}]" if ":" in address else address
        own = f"authorization: Bearer {key}\r\n" if key else ""
        self._head = f"host: {host}:{port}\r\n{own}".encode()
        """Header lines of every request; ``key`` authenticates the gateway at another server."""
        self._host = self._head + b"content-type: application/json\r\n"
        self.sweeper: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time

    def post(self, sink: ResponseSink, path: bytes, body: bytes, header: bytes) -> UpstreamCall:
        """POST ``body`` to ``path``; ``header`` is one further header line without its end.

        The sink gets :class:`EngineUnavailableError` if nothing listens, else :class:`EngineFailedError` or
        :class:`EngineTimeoutError`. If the engine has just closed a kept-alive connection, a new one replaces it.
        """
        request = b"POST %s HTTP/1.1\r\n%s%s\r\ncontent-length: %d\r\n\r\n%s" % (
            path,
            self._host,
            header,
            len(body),
            body,
        )
        call = UpstreamCall(self, sink, request, self._first_byte_s)
        idle = self.idle
        while idle:
            connection = idle.pop()
            if not connection.transport.is_closing():
                call.reused = True
                connection.send(call)
                return call
        self.open(call)
        return call

    def post_form(
        self,
        sink: ResponseSink,
        path: bytes,
        pieces: Sequence[bytes | memoryview],
        *,
        content_type: bytes,
        header: bytes,
    ) -> UpstreamCall:
        """POST a body in ``pieces``, once, on a connection of its own.

        A kept-alive connection may be closed already, and a body of megabytes is not sent twice. ``header`` is one
        further header line without its end. Errors as in :meth:`post`.
        """
        lines = b"content-type: %s\r\n%s\r\nconnection: close\r\n" % (content_type, header)
        length = sum(map(len, pieces))
        request = b"POST %s HTTP/1.1\r\n%s%scontent-length: %d\r\n\r\n" % (path, self._head, lines, length)
        call = UpstreamCall(self, sink, request, self._first_byte_s)
        call.more = pieces
        self.open(call)
        return call

    async def probe(
        self,
        path: bytes,
        body: bytes,
        timeout_s: float,
        *,
        method: bytes = b"POST",
        content_type: bytes = b"application/json",
    ) -> tuple[int, bytes]:
        """Send a request on a connection of its own, for canaries; return ``(status, body)``.

        Raises what :meth:`post` reports, and :class:`EngineTimeoutError` after ``timeout_s``.
        """
        sink = _Collector(self._loop.create_future())
        request = b"%s %s HTTP/1.1\r\n%sconnection: close\r\n" % (method, path, self._head)
        if body:
            request += b"content-type: %s\r\ncontent-length: %d\r\n" % (content_type, len(body))
        request += b"\r\n" + body
        call = UpstreamCall(self, sink, request, timeout_s)
        self.open(call)
        try:
            async with asyncio.timeout(timeout_s + self._connect_s):
                return await sink.done
        except TimeoutError:
            raise EngineTimeoutError("the engine did not finish a token in time; see its log") from None
        finally:
            call.cancel()

    def open(self, call: UpstreamCall) -> None:
        """Send ``call`` on a new connection."""
        call.task = task = self._loop.create_task(self._connect(call))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def lost(self, connection: UpstreamConnection) -> None:
        """Forget a connection that the engine closed: none from before a restart stays."""
        self.busy.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    def fail_calls(self, failure: RequestError) -> None:
        """End every running call with ``failure``."""
        for connection in [*self.busy]:
            connection.fail(failure)

    def close(self) -> None:
        """Close every connection."""
        if self.sweeper is not None:
            self.sweeper.cancel()
            self.sweeper = None
        for task in [*self._connecting]:
            task.cancel()
        for connection in [*self.idle, *self.busy]:
            connection.fail(EngineFailedError("the gateway is stopping"))
        self.idle.clear()

    def sweep(self) -> None:
        """Check the deadlines of all calls, again and again while there are any."""
        now = self._loop.time()
        self.read_deadline = now + self.stall_s + SWEEP_S
        for connection in [*self.busy]:
            if connection.call is not None:
                connection.call.expire(now)
        self.sweeper = self._loop.call_later(SWEEP_S, self.sweep) if self.busy else None

    async def _connect(self, call: UpstreamCall) -> None:
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await self._loop.create_connection(
                    lambda: UpstreamConnection(self), self.address, self.port
                )
        except (OSError, TimeoutError) as error:
            reason = "did not accept a connection in time" if isinstance(error, TimeoutError) else "is not up"
            call.sink.on_failure(EngineUnavailableError(f"the engine {reason}; try again shortly", retry_after=2))
            return
        finally:
            call.task = None
        call.reused = False
        connection.send(call)


class _Collector:
    """A sink that collects a small response into a future."""

    def __init__(self, done: asyncio.Future[tuple[int, bytes]]) -> None:
        self.done = done
        self._status = 0
        self._parts: list[bytes] = []

    def on_head(self, status: int, content_type: bytes) -> None:  # noqa: ARG002 - the sink's protocol
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
