"""The server: connections of clients, each with a parser and one response at a time.

An ASGI server costs more per request than all work of the gateway itself (docs/decisions/0006). It also hides two
events that matter here: a client disconnected, and a client does not read. Here both are callbacks.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sys
import termios
from collections import deque
from collections.abc import Callable
from enum import Enum
from itertools import count
from typing import NamedTuple, cast

from appliance.errors import InternalError, RequestError, RequestTimeoutError
from appliance.http1.parser import BODY, HEAD, IDLE, RequestParser
from appliance.http1.types import JSON, SSE, ClientEvents, Handler, Request, Timeouts
from appliance.http1.writer import CHUNK, CONTINUE, LAST_CHUNK, WriteCoalescer, encode_response, stream_head

LOG = logging.getLogger(__name__)

SWEEP_S = 0.5
"""Interval of the deadline checks: one timer for all connections, none per request."""

LEAST_READ = 16 * 1024
"""Bytes of the outstanding ones that a client must take within ``reader_timeout_s``; else it does not read."""

LINGER_S = 2.0
"""Seconds for which a refused client may continue to send, unread, before its connection is closed."""


class ConnectionPhase(Enum):
    """The phase of a connection. The transitions::

    phase    event                               next
    OPEN     the last response is written        CLOSING
    OPEN     the connection is lost              CLOSED
    CLOSING  the client closes, or its deadline  CLOSED
    """

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


OPEN, CLOSING, CLOSED = ConnectionPhase


class RefusedRequest(NamedTuple):
    """A request and the error that it gets as response, the last one of its connection."""

    request: Request
    error: RequestError


class ResponseWriter:
    """The response to one request: whole, or a stream. Nothing is written after its end or the connection's."""

    __slots__ = ("_chunked", "_coalescer", "_connection", "_open", "_transport", "listener", "request")

    def __init__(self, connection: ClientConnection, request: Request) -> None:
        self.request = request
        self.listener: ClientEvents | None = None
        self._connection = connection
        self._transport = connection.transport
        self._coalescer = connection.server.coalescer
        self._chunked = not request.http10
        self._open = True

    # Called by the application: see types.ClientResponder.

    def respond(self, status: int, body: bytes, kind: bytes = JSON, headers: bytes = b"") -> None:
        """Write a whole response, without its body to a HEAD request."""
        if not self._open:
            self._connection.close_after(self)
            return
        server, last = self._connection.server, self._connection.last
        headers = server.handler.complete_headers(self.request, headers)
        data = encode_response(status, body, kind, headers, close=last or server.draining)
        if self.request.method == "HEAD":
            # The client would read a body as its next response.
            data = data[: len(data) - len(body)]
        self._coalescer.write(self._transport, data)
        self._open = False
        self.listener = None
        self._connection.finish()

    def start_stream(self, status: int, headers: bytes, kind: bytes = SSE) -> None:
        """Write the head of a stream; ``kind`` is its content type."""
        if self._open:
            server, last = self._connection.server, self._connection.last
            headers = server.handler.complete_headers(self.request, headers)
            close = last or server.draining
            head = stream_head(status, headers, chunked=self._chunked, close=close, kind=kind)
            self._coalescer.write(self._transport, head)

    def write(self, data: bytes) -> None:
        """Write a piece of the stream."""
        if self._open:
            self._coalescer.write(self._transport, CHUNK % (len(data), data) if self._chunked else data)

    def end_stream(self, data: bytes = b"") -> None:
        """Write a last piece, and end the stream."""
        if not self._open:
            self._connection.close_after(self)
            return
        if self._chunked:
            data = CHUNK % (len(data), data) + LAST_CHUNK if data else LAST_CHUNK
        if data:
            self._coalescer.write(self._transport, data)
        self._open = False
        self.listener = None
        self._connection.finish()

    def abort(self) -> None:
        """Close the connection at once."""
        self._connection.abort()

    # Called by the connection.

    def handle(self) -> None:
        """Call the application; whatever it raises becomes the response."""
        if not self._open:
            # The request was pipelined, and its client disconnected before its turn.
            return
        handler = self._connection.server.handler
        try:
            handler.handle(self.request, self)
        except RequestError as error:
            handler.refuse(self.request, error, self)
        except Exception as error:  # noqa: BLE001 - every request gets one response
            handler.refuse(self.request, internal_error(error, self.request), self)

    def disconnect(self) -> None:
        """Report that the client disconnected."""
        self._open = False
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.client_disconnected()


class ClientConnection(asyncio.Protocol):
    """One client's connection: its requests are handled in order, one at a time. Implements ``ParserEvents``."""

    __slots__ = (
        "_parser",
        "_phase",
        "_response",
        "_slow",
        "_started",
        "_unread",
        "_waiting",
        "deadline",
        "last",
        "on_head",
        "on_too_large",
        "server",
        "transport",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport
        self.deadline = 0.0
        """The loop's time at which the client is late, unless a response is being produced."""
        self._phase = OPEN
        self._parser = RequestParser(self, server.request_id)
        self._response: ResponseWriter | None = None
        self._waiting: deque[Request | RefusedRequest] = deque()
        """Pipelined requests, and a refusal behind them."""
        self.last = False
        """Whether the connection closes after the response being written."""
        self._slow = False
        """Whether the client does not read what was written."""
        self._unread = 0
        """Bytes that the client had to take when its reading time began."""
        self._started = False
        """Whether a request was dispatched in this read."""
        # Events that the application takes itself: a call less per request.
        self.on_head = server.handler.begin
        self.on_too_large = server.handler.too_large

    @property
    def responding(self) -> bool:
        """Whether a response is being produced."""
        return self._response is not None

    @property
    def buffered(self) -> int:
        """Bytes written that the kernel has not taken."""
        return self.transport.get_write_buffer_size()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the header timeout."""
        # A cast: uvloop's transports only look like asyncio.Transport.
        self.transport = cast("asyncio.Transport", transport)
        self.server.connections.add(self)
        self.deadline = self.server.now() + self.server.timeouts.head_s

    def data_received(self, data: bytes) -> None:
        """Parse ``data``, unless the connection is closing."""
        if self._phase is not OPEN:
            return
        parser = self._parser
        before, self._started = parser.phase, False
        parser.feed(data)
        phase = parser.phase
        if (phase is HEAD or phase is BODY) and (phase is not before or self._started) and self._response is None:
            # A head or a body began. Most requests come in one read, and need no timer.
            self._start_timeout(self.server.timeouts.head_s if phase is HEAD else self.server.timeouts.body_s)
        if self._waiting:
            self._take_waiting()

    def eof_received(self) -> None:
        """Let asyncio close the connection: a client that closes its half does not read the response either."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Report it to the producer of the response and of requests that stay incomplete."""
        self._phase = CLOSED
        server = self.server
        server.connections.discard(self)
        refused = [waiting.request for waiting in self._waiting if isinstance(waiting, RefusedRequest)]
        self._waiting.clear()
        response, self._response = self._response, None
        if response is not None:
            response.disconnect()
        unfinished = self._parser.close()
        for request in [*refused, *([unfinished] if unfinished is not None else [])]:
            server.handler.record_incomplete(request, None)
        server.check_drained()

    def pause_writing(self) -> None:
        """Stop the producer: the client does not read."""
        self._slow = True
        self._start_read_timeout()
        if self._response is not None and self._response.listener is not None:
            self._response.listener.client_slow()

    def resume_writing(self) -> None:
        """Let the producer continue, and take the next request."""
        self._slow = False
        if self._response is not None:
            if self._response.listener is not None:
                self._response.listener.client_ready()
        elif self._phase is OPEN:
            timeouts = self.server.timeouts
            self._start_timeout(timeouts.idle_s if self._parser.phase is IDLE else timeouts.body_s)
        self._take_waiting()

    # Called by the parser.

    def on_continue(self) -> None:
        """Invite the body, unless an earlier response is unfinished."""
        if self._response is None:
            self.server.coalescer.write(self.transport, CONTINUE)

    def on_request(self, request: Request) -> None:
        """Handle the request, or let it wait behind the one before it.

        One response starts per turn of the loop, and none while the client does not read: buffered responses would
        exhaust the memory. The client is not read while requests wait.
        """
        if self._response is not None or self._slow or self._started:
            self._waiting.append(request)
            self.transport.pause_reading()
        else:
            self._started = True
            # As in `_start`, without its call.
            self.last = self.last or request.close
            self._response = response = ResponseWriter(self, request)
            response.handle()

    def on_error(self, request: Request, error: Exception) -> None:
        """Respond with the error and close: the beginning of the next request is unknown."""
        refused = RefusedRequest(
            request, error if isinstance(error, RequestError) else internal_error(error, request)
        )
        if self._response is not None:
            self._waiting.append(refused)
            self.transport.pause_reading()
        else:
            self._refuse(refused)

    # Called by its responses and by the server.

    def finish(self) -> None:
        """Take the next request, or close; the response is written."""
        server, parser = self.server, self._parser
        self._response = None
        if server.draining:
            server.check_drained()
        if not (self.last or server.draining):
            if not self._slow:
                timeouts = server.timeouts
                self.deadline = server.now() + (timeouts.idle_s if parser.phase is IDLE else timeouts.body_s)
            if self._waiting:
                self._take_waiting()
            return
        self._phase = CLOSING
        complete = parser.phase is IDLE
        unfinished = parser.close()
        if unfinished is not None:
            server.handler.record_incomplete(unfinished, None)
        server.coalescer.flush()
        self._start_read_timeout()
        if complete:
            self.transport.close()
            return
        # The client is still sending: closing now would reset the connection and lose the response.
        self.transport.write_eof()
        if not self.buffered:
            self.deadline = server.now() + LINGER_S

    def close_after(self, response: ResponseWriter) -> None:
        """Close if ``response`` has ended and :meth:`finish` failed: no next request can begin."""
        if self._response is response:
            self._response = None
            self.server.coalescer.flush()
            self.transport.close()

    def abort(self) -> None:
        """Close at once, without what is still buffered."""
        self.transport.abort()

    def expire(self, now: float) -> None:
        """End what took too long: a head, a body, the pause between requests, or reading."""
        if now <= self.deadline or self._phase is CLOSED:
            return
        if self._slow or self._phase is CLOSING:
            if 0 < self._outstanding() <= self._unread - LEAST_READ:
                self._start_read_timeout()
            else:
                self.abort()
        elif self._response is not None:
            return
        elif self._parser.phase is IDLE:
            self.transport.close()
        else:
            part = "headers" if self._parser.phase is HEAD else "body"
            self._parser.fail(RequestTimeoutError(f"Your request's {part} did not come in time; send it again"))

    def drain(self) -> None:
        """Close now if no request has begun, else after the one that has."""
        self.last = True
        if self._response is None and self._parser.phase is IDLE:
            self.transport.close()

    # Inside.

    def _start(self, request: Request) -> ResponseWriter:
        self.last = self.last or request.close
        self._response = response = ResponseWriter(self, request)
        return response

    def _take_waiting(self) -> None:
        """Take what was pipelined, once the response before it is written and read."""
        if not self._waiting or self._response is not None or self._slow or self._phase is not OPEN:
            return
        following = self._waiting.popleft()
        if not self._waiting:
            self.transport.resume_reading()
        if isinstance(following, RefusedRequest):
            self._refuse(following)
        else:
            self.server.loop.call_soon(self._start(following).handle)

    def _refuse(self, refused: RefusedRequest) -> None:
        """Respond with the error; the response is the last one."""
        request, error = refused
        self.last = True
        response = self._start(request)
        self.server.handler.record_incomplete(request, error)
        self.server.handler.refuse(request, error, response)

    def _start_timeout(self, seconds: float) -> None:
        """Give the client ``seconds``; a slow one has the reader's time instead."""
        if not self._slow:
            self.deadline = self.server.now() + seconds

    def _start_read_timeout(self) -> None:
        """Give the client its time to take what was written."""
        self._unread = self._outstanding()
        self.deadline = self.server.now() + self.server.timeouts.read_s

    def _outstanding(self) -> int:
        """Return the bytes that the client's machine has not taken: ours, and maybe megabytes in the kernel."""
        number = self.transport.get_extra_info("socket").fileno()
        if number < 0:
            return 0
        return self.buffered + int.from_bytes(fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


class Server:
    """All client connections of one application, their deadlines, and how they end."""

    def __init__(self, handler: Handler, timeouts: Timeouts, coalescer: WriteCoalescer) -> None:
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self.handler = handler
        self.timeouts = timeouts
        self.coalescer = coalescer
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self._empty: asyncio.Event | None = None
        # Formatted without a Python call.
        self.request_id: Callable[[], str] = map(f"{os.urandom(6).hex()}%012x".__mod__, count(1)).__next__
        """Returns an id that no other request has."""
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def connect(self) -> ClientConnection:
        """Return the protocol of a new connection."""
        return ClientConnection(self)

    def drain(self) -> None:
        """Make every response the last of its connection; close idle connections now."""
        self.draining = True
        for connection in [*self.connections]:
            connection.drain()

    async def drained(self) -> None:
        """Wait until no response is being produced."""
        self._empty = asyncio.Event()
        self.check_drained()
        await self._empty.wait()

    async def flushed(self) -> None:
        """Wait until every connection has taken what was written to it, and closed."""
        while any(connection.buffered for connection in self.connections):  # noqa: ASYNC110 - the kernel's state
            await asyncio.sleep(0.01)

    def check_drained(self) -> None:
        """End :meth:`drained` after the last response."""
        if self._empty is not None and not any(connection.responding for connection in self.connections):
            self._empty.set()

    def close(self) -> None:
        """End every connection."""
        self._sweeper.cancel()
        for connection in [*self.connections]:
            connection.abort()

    def _sweep(self) -> None:
        now = self.now()
        for connection in [*self.connections]:
            connection.expire(now)
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)


def internal_error(error: BaseException, request: Request) -> InternalError:
    """Return the 500 for an unexpected error, and log the error under the request's id."""
    LOG.error("the gateway failed on a request", exc_info=error, extra={"fields": {"request_id": request.id}})
    return InternalError(f"The gateway failed on this request; its log has the reason under {request.id}")
