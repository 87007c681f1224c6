"""An HTTP/1.1 client for a process behind a Unix socket: any method and any content type, streamed responses.

Each call has a connection of its own, for a tenth of a millisecond. So no request is sent twice, and no call reads
the response of another one. The :mod:`pool <appliance.http1.client>` for engines is a separate client: its calls
must be cheap.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeAlias, cast

import httptools

from appliance.system.unix_socket import address

Headers: TypeAlias = list[tuple[bytes, bytes]]
"""Names in lower case and values, in the order in which they arrived."""


class SocketFailure(Enum):
    """The reason for which a call has no whole response."""

    ABSENT = "no process accepts connections"
    """Nothing was sent."""
    CUT = "the process closed the connection before its response was complete"
    GARBLED = "the process did not respond in HTTP"


class SocketSink(Protocol):
    """Receives a response: a head, pieces, then an end; or a failure at any time."""

    def on_head(self, status: int, headers: Headers) -> None:
        """Take the final status and the headers; an interim status is skipped."""

    def on_data(self, data: bytes) -> None:
        """Take a piece of the body."""

    def on_end(self) -> None:
        """The response is complete."""

    def on_failure(self, failure: SocketFailure) -> None:
        """Take the reason for which the response ends here, or does not begin."""

    def crashed(self, error: Exception) -> None:
        """Take the error that one of the events above raised; no further event follows."""


class SocketCallPhase(Enum):
    """The progress of a call. The transitions::

        phase       event                           next
        CONNECTING  the connection opens            SENT
        CONNECTING  no connection: ABSENT           OVER
        SENT        final status                    BEGUN
        SENT        end of the connection: CUT      OVER
        BEGUN       end of the response             OVER
        BEGUN       end of the connection: CUT      OVER

    Bytes that are not HTTP end the call as GARBLED. :meth:`SocketCall.cancel` ends it in any phase, silently.
    """

    CONNECTING = "connecting"
    SENT = "sent"
    BEGUN = "begun"
    OVER = "over"


CONNECTING, SENT, BEGUN, OVER = SocketCallPhase


class SocketCall(asyncio.Protocol):
    """One request to the process at ``path`` and the state of its response.

    Args:
        path: The Unix socket.
        sink: Receives the response.
        head: Request line and headers, up to the blank line. It must have ``connection: close``.
        body: The body of the request.
        bodiless: Whether the response has no body whatever its headers are, as to a HEAD.
        connect_s: Seconds within which the process must accept the connection.
    """

    __slots__ = (
        "_bodiless",
        "_body",
        "_head",
        "_headers",
        "_parser",
        "_paused",
        "_sink",
        "_task",
        "_transport",
        "phase",
    )

    def __init__(
        self,
        path: Path,
        sink: SocketSink,
        *,
        head: bytes,
        body: bytes,
        bodiless: bool = False,
        connect_s: float = 2.0,
    ) -> None:
        self.phase = CONNECTING
        self._sink = sink
        self._head = head
        self._body = body
        self._bodiless = bodiless
        self._parser: httptools.HttpResponseParser
        self._headers: Headers = []
        self._paused = False
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = asyncio.get_running_loop().create_task(
            self._connect(path, connect_s)
        )

    def pause(self) -> None:
        """Stop reading the response: the buffers of the process fill, then it waits."""
        if not self._paused and self.phase is not OVER:
            self._paused = True
            if self._transport is not None:
                self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            if self._transport is not None and self.phase is not OVER:
                self._transport.resume_reading()

    def cancel(self) -> None:
        """Close the connection, so that the process can stop its work. No further event follows."""
        self._close()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        # A cast: uvloop's transports only look like asyncio.Transport.
        self._transport = own = cast("asyncio.Transport", transport)
        if self.phase is OVER:
            own.abort()
            return
        self.phase = SENT
        self._parser = httptools.HttpResponseParser(self)
        # Two writes: a body has megabytes, and one text of both would be a copy.
        own.write(self._head)
        if self._body:
            own.write(self._body)
        self._head = self._body = b""
        if self._paused:
            own.pause_reading()

    def data_received(self, data: bytes) -> None:
        """Parse ``data``; the parser passes it on."""
        if self.phase is OVER:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._crash(cause if isinstance(cause, Exception) else error)
        except httptools.HttpParserError:
            # Bytes after the complete response end the connection only.
            if self.phase is not OVER:
                self._fail(SocketFailure.GARBLED)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Fail, unless the response is complete."""
        if hasattr(self, "_parser"):
            # It holds this call, whose memory would be free only at a later garbage collection.
            del self._parser
        if self.phase is not OVER:
            self._fail(SocketFailure.CUT)

    # Called by llhttp. An error that the sink raises ends in `data_received`.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; a trailer is ignored."""
        if self.phase is SENT:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Report the status, unless it is an interim one."""
        headers, self._headers = self._headers, []
        status = self._parser.get_status_code()
        if status < 200 or self.phase is not SENT:
            return
        self.phase = BEGUN
        self._sink.on_head(status, headers)
        if self._bodiless and self.phase is BEGUN:
            self._end()

    def on_body(self, data: bytes) -> None:
        """Pass on a piece."""
        if self.phase is BEGUN:
            self._sink.on_data(data)

    def on_message_complete(self) -> None:
        """Report the end of the response."""
        if self.phase is BEGUN:
            self._end()

    # Inside.

    async def _connect(self, path: Path, connect_s: float) -> None:
        try:
            async with asyncio.timeout(connect_s):
                with address(path) as name:
                    await asyncio.get_running_loop().create_unix_connection(lambda: self, name)
        except (OSError, TimeoutError):
            if self.phase is not OVER:
                self._fail(SocketFailure.ABSENT)
        finally:
            self._task = None

    def _end(self) -> None:
        self._close()
        self._sink.on_end()

    def _fail(self, failure: SocketFailure) -> None:
        self._close()
        try:
            self._sink.on_failure(failure)
        except Exception as error:  # noqa: BLE001 - the boundary of one call
            self._sink.crashed(error)

    def _crash(self, error: Exception) -> None:
        """Report an error of the sink's own to the sink alone."""
        self._close()
        self._sink.crashed(error)

    def _close(self) -> None:
        self.phase = OVER
        self._head = self._body = b""
        task, self._task = self._task, None
        transport = self._transport
        if transport is not None:
            transport.abort()
        elif task is not None and task is not asyncio.current_task():
            task.cancel()
