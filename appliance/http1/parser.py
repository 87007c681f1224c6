"""The parser of requests without I/O: bytes in, calls of :class:`ParserEvents` out.

llhttp, under httptools, is strict, so no request is smuggled past a proxy in front. It rejects a Content-Length
with Transfer-Encoding, repeated, or with a sign; folded headers; and invalid chunk extensions. It accepts a
repeated Host or Authorization, which two programs may read differently; this parser refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import httptools

from appliance.errors import BodyTooLargeError, InvalidRequestError, MethodNotAllowedError, RequestError
from appliance.http1.types import Request

MAX_HEADERS = 32 * 1024
"""Bytes of one request's head. nginx in front allows 32 KB as well; an API key has 60."""

SINGLE = frozenset(
    {
        b"host",
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"content-type",
        b"content-encoding",
        b"idempotency-key",
        b"origin",
    }
)
"""Headers that a request may have once: two programs may disagree about which of two counts."""

REPEATABLE = frozenset({b"content-type", b"content-encoding"})
"""Headers of :data:`SINGLE` whose equal repetition is harmless."""

HOST = re.compile(rb"([A-Za-z0-9._~-]*|\[[0-9A-Fa-f:.]+\])(:\d{0,5})?")
"""A plain host with an optional port; anything more could be read as another address or path."""

UPGRADING = frozenset({b"connection", b"upgrade", b"http2-settings"})
"""Headers that request an upgrade."""


class HeadersTooLargeError(RequestError):
    """431: the head is over the limit."""

    status = 431
    kind = "invalid_request_error"
    code = "headers_too_large"

    def __init__(self) -> None:
        super().__init__(f"The headers are over the limit of {MAX_HEADERS} bytes")


class ParserPhase(Enum):
    """The part of a request that the parser reads. The transitions::

        phase   input                       event       next
        IDLE    blank line, method                      IDLE
        IDLE    target of a request                     HEAD
        IDLE    error, fail()               on_error    CLOSED
        IDLE    close()                                 CLOSED
        HEAD    more of the head                        HEAD
        HEAD    end of a head with upgrade              HEAD
        HEAD    end of the head             on_head     BODY
        HEAD    error, fail()               on_error    CLOSED
        HEAD    close()                                 CLOSED
        BODY    more of the body, trailer               BODY
        BODY    end of the request          on_request  IDLE
        BODY    error, fail()               on_error    CLOSED
        BODY    close()                                 CLOSED
        CLOSED  anything                                CLOSED

    An error is input that is not HTTP, is over a limit, or is refused by an event that raises. The events
    ``on_continue`` and ``on_too_large`` do not change the phase.
    """

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    CLOSED = "closed"


# Bound once: an attribute of an Enum costs more than a global.
IDLE, HEAD, BODY, CLOSED = ParserPhase


class ParserEvents(Protocol):
    """Receives the events of a parser. An error that an event raises ends in ``on_error``."""

    def on_head(self, request: Request) -> int:
        """Return the limit of the body in bytes; the head of ``request`` is complete."""

    def on_continue(self) -> None:
        """Send ``100 Continue``: the client waits for it before it sends the body."""

    def on_too_large(self, request: Request, error: RequestError) -> RequestError:
        """Return the error for a body over its limit: ``error``, or a more important one."""

    def on_request(self, request: Request) -> None:
        """Take a complete request."""

    def on_error(self, request: Request, error: Exception) -> None:
        """Refuse ``request``, of which an incomplete head may be all that is known; no further event follows."""


class RequestParser:
    """Parses the requests of one connection, and collects their bodies up to the limit that ``on_head`` returns.

    Events are the same for any split of the same bytes, with two exceptions. A header or a chunk extension over
    :data:`MAX_HEADERS` is refused at the end of the read that exceeds the limit, even before it is complete. A head
    with two errors is refused for one of them, and the split decides which.
    """

    __slots__ = (
        "_body",
        "_counting",
        "_events",
        "_headers",
        "_host",
        "_limit",
        "_llhttp",
        "_new_id",
        "_pending",
        "_plain",
        "_progress",
        "_received",
        "_request",
        "_size",
        "_target",
        "phase",
    )

    def __init__(self, events: ParserEvents, new_id: Callable[[], str]) -> None:
        self.phase = IDLE
        self._events = events
        self._new_id = new_id
        self._llhttp = httptools.HttpRequestParser(self)
        self._host = b""
        """The last valid Host: nearly every request of a connection repeats it."""
        # Of the head that is being read.
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._pending = 0
        """Bytes of successive reads without progress: they are part of one head, trailer or chunk extension."""
        self._size = 0
        """Bytes of that part so far: those of earlier reads, and the target and complete headers of this read."""
        self._counting = False
        """Whether this read could exceed the limit, so that its headers are counted."""
        self._progress = False
        """Whether this read completed a head or a request, or had a piece of a body."""
        self._plain = b""
        # Of the request whose body is being read.
        self._request: Request | None = None
        self._limit = 0
        self._received = 0
        self._body: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Parse the next bytes of the connection."""
        if self.phase is CLOSED:
            return
        self._progress = False
        self._size = self._pending
        self._counting = self._size + len(data) > MAX_HEADERS
        try:
            self._llhttp.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._feed_without_upgrades(data, upgrade)
        except httptools.HttpParserError as error:
            self._stop(error)
        if not self._progress and self.phase is not IDLE:
            self._pending += len(data)
            if self._pending > MAX_HEADERS:
                self.fail(HeadersTooLargeError())

    def fail(self, error: Exception) -> None:
        """Refuse the request that is being read, and stop."""
        if self.phase is CLOSED:
            return
        events = self._events
        request = self.close() or Request("", self._target, self._headers, self._new_id(), close=True, http10=False)
        events.on_error(request, error)

    def close(self) -> Request | None:
        """Stop; return the request that stays incomplete, if its head is complete."""
        if self.phase is CLOSED:
            return None
        self.phase = CLOSED
        request, self._request = self._request, None
        # They hold this parser: without them its memory is free at once, not at some later garbage collection.
        del self._events, self._llhttp
        return request

    # Called by llhttp.

    def on_url(self, url: bytes) -> None:
        """Enter HEAD, and collect the request's target, which may come in pieces."""
        if self.phase is CLOSED:
            raise InvalidRequestError("An event closed the parser; stop llhttp within this read")
        self.phase = HEAD
        self._target += url
        if self._counting:
            self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header; those of :data:`SINGLE` once only."""
        if self._counting:
            self._count(len(name) + len(value) + 3)
        if self.phase is BODY:
            # A trailer. Nothing reads it, and the next request must not inherit it (RFC 9110, 6.5.1).
            return
        name = name.lower()
        headers = self._headers
        if name in headers:
            if name in SINGLE:
                if name in REPEATABLE and value == headers[name]:
                    return
                raise InvalidRequestError(f"The header {name.decode()} occurs twice; send it once")
            # Several fields of cookies are one list with semicolons (RFC 9113, 8.2.3).
            value = headers[name] + (b"; " if name == b"cookie" else b", ") + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        """Enter BODY, unless the head is invalid or refused; llhttp has checked the framing."""
        llhttp, headers, events = self._llhttp, self._headers, self._events
        keep_alive = llhttp.should_keep_alive()
        # Without a Connection header only HTTP/1.1 keeps the connection, and this is cheaper than the version.
        version = "1.1" if keep_alive and b"connection" not in headers else llhttp.get_http_version()
        http10 = version == "1.0"
        request = Request(
            llhttp.get_method().decode(),
            self._target,
            headers,
            self._new_id(),
            # In HTTP/1.0 the end of the connection ends a stream.
            close=http10 or not keep_alive,
            http10=http10,
        )
        self._request = request
        self._target, self._headers = b"", {}
        self._size = self._pending = 0
        self._progress = True
        if not http10 and version != "1.1":
            raise InvalidRequestError(f"HTTP/{version} is not supported; use HTTP/1.1", code="invalid_http")
        host = headers.get(b"host")
        if host is None:
            if not http10:
                raise InvalidRequestError("The header Host is missing; HTTP/1.1 needs it", code="invalid_http")
        elif host != self._host:
            if not HOST.fullmatch(host):
                raise InvalidRequestError(
                    "The header Host has no valid host; write a name and a port", code="invalid_http"
                )
            self._host = host
        if llhttp.should_upgrade():
            # llhttp reads no body after this head; `feed` parses it again without the upgrade.
            if request.method == "CONNECT":
                raise MethodNotAllowedError("This server is not a proxy; send requests for its own paths")
            self._plain = _without_upgrade(request)
            self._request = None
            return
        self._limit = limit = events.on_head(request)
        length = headers.get(b"content-length")
        if length is not None and int(length) > limit:
            raise self._too_large(request)
        self.phase = BODY
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue":
            events.on_continue()

    def on_body(self, data: bytes) -> None:
        """Collect a piece of the body, up to its limit."""
        request = self._request
        self._size = self._pending = 0
        self._progress = True
        self._received += len(data)
        if self._received > self._limit and request is not None:
            raise self._too_large(request)
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Enter IDLE; the request is complete."""
        request = self._request
        if request is None:
            return
        parts = self._body
        if parts:
            request.body = parts[0] if len(parts) == 1 else b"".join(parts)
            self._body = []
            self._received = 0
        self._request = None
        self._size = self._pending = 0
        self._progress = True
        self.phase = IDLE
        self._events.on_request(request)

    # Inside.

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > MAX_HEADERS:
            raise HeadersTooLargeError

    def _feed_without_upgrades(self, piece: bytes | memoryview, upgrade: httptools.HttpParserUpgrade) -> None:
        """Parse on behind a request for an upgrade, and behind each that follows in the same read.

        Nothing is upgraded: the request continues as one without an upgrade (RFC 9110, 7.8).
        """
        pieces: list[bytes | memoryview] = []
        while self.phase is not CLOSED:
            self._llhttp = llhttp = httptools.HttpRequestParser(self)
            pieces += [memoryview(piece)[upgrade.args[0] :], self._plain]
            try:
                while pieces:
                    piece = pieces.pop()
                    llhttp.feed_data(piece)
            except httptools.HttpParserUpgrade as another:
                upgrade = another
            except httptools.HttpParserError as error:
                self._stop(error)
                return
            else:
                return

    def _too_large(self, request: Request) -> RequestError:
        error = BodyTooLargeError(f"The body is over the limit of {self._limit} bytes")
        return self._events.on_too_large(request, error)

    def _stop(self, error: httptools.HttpParserError) -> None:
        """Fail with the reason for which llhttp stopped: bytes that are not HTTP, or an error of an event."""
        if not isinstance(error, httptools.HttpParserCallbackError):
            self.fail(InvalidRequestError(f"This is not an HTTP/1.1 request: {error}", code="invalid_http"))
            return
        cause = error.__context__
        self.fail(cause if isinstance(cause, Exception) else error)


def _without_upgrade(request: Request) -> bytes:
    """Return the head of ``request`` as a client would send it that speaks HTTP/1.1 only."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.target)]
    lines += [b"%s: %s" % (name, value) for name, value in request.headers.items() if name not in UPGRADING]
    return b"\r\n".join([*lines, b"", b""])
