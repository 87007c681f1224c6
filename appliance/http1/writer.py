"""HTTP/1.1 responses as bytes, and the time of their writing.

A write wakes the process at the other end, and waking a sleeping core costs more than the write. If a turn of the
event loop sends its writes together, that process is already awake: measured, a third less processor time per
request. While the loop is not busy, a turn has one or two writes, and they are sent directly. Collecting them would
only cost another turn.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from appliance.http1.types import JSON, SSE

BUSY = 16
"""Direct writes within one reading of the loop's clock (a millisecond) from which on they are collected."""

FEW = 2
"""Collected writes of a turn at or below which the next ones are sent directly again."""

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}
_OK_JSON = _STATUS_LINES[200] + b"content-type: application/json\r\n"
_CLOSE = b"connection: close\r\n"
_SSE = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

CHUNK = b"%x\r\n%s\r\n"
"""A chunk, formatted with its length and its data."""

LAST_CHUNK = b"0\r\n\r\n"


def encode_response(status: int, body: bytes, kind: bytes, headers: bytes, *, close: bool) -> bytes:
    """Return a whole response; ``kind`` is its content type, ``headers`` are further lines, each with its CRLF."""
    last = _CLOSE if close else b""
    if status == 204:
        # No content has no length either (RFC 9110, 8.6).
        return b"%s%s%s\r\n" % (_status_line(204), headers, last)
    first = _OK_JSON if status == 200 and kind == JSON else b"%scontent-type: %s\r\n" % (_status_line(status), kind)
    return b"%s%s%scontent-length: %d\r\n\r\n%s" % (first, headers, last, len(body), body)


def stream_head(status: int, headers: bytes, *, chunked: bool, close: bool, kind: bytes = SSE) -> bytes:
    """Return the head of a streamed response with the content type ``kind``.

    For HTTP/1.0 it is not chunked and ends with the connection.
    """
    framing = b"transfer-encoding: chunked\r\n" if chunked else b""
    lines = _SSE if kind is SSE else b"content-type: %s\r\n" % kind
    return b"%s%s%s%s%s\r\n" % (_status_line(status), lines, headers, framing, _CLOSE if close else b"")


def _status_line(status: int) -> bytes:
    """Return the first line of a response; an unregistered status gets an empty phrase."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


class WriteCoalescer:
    """Sends ``(transport, data)`` now or at the end of the turn, in order per transport."""

    __slots__ = ("_at", "_count", "_direct", "_loop", "_now", "_pending")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._now = loop.time
        self._pending: list[tuple[asyncio.Transport, bytes]] = []
        self._direct = True
        self._at = 0.0
        self._count = 0

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Send ``data`` at the end of this turn at the latest."""
        pending = self._pending
        if not pending:
            if self._direct:
                now = self._now()
                if now != self._at:
                    self._at = now
                    self._count = 0
                self._count += 1
                if self._count < BUSY:
                    transport.write(data)
                    return
                self._direct = False
            self._loop.call_soon(self.flush)
        pending.append((transport, data))

    def flush(self) -> None:
        """Send everything now; call it before a transport is closed or written to directly."""
        pending = self._pending
        if pending:
            self._pending = []
            self._direct = len(pending) <= FEW
            for transport, data in pending:
                # uvloop's transports raise if they were lost in this turn, and the others' data must not be lost.
                if not transport.is_closing():
                    transport.write(data)
