"""The gateway's own HTTP/1.1 server side: one :class:`ClientConnection` per client, on asyncio and httptools.

An ASGI server costs more per request than everything the gateway itself does (docs/decisions/0006), and hides
the two things that matter here: that a client left, and that a client does not read. Here both are callbacks.

llhttp, under httptools, is strict: a Content-Length beside Transfer-Encoding, twice, or with a sign, folded
headers and broken chunk extensions are errors, so nothing can be smuggled past a proxy in front. What llhttp
leaves open (Host and Authorization sent twice) is refused here.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import sys
import termios
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from appliance.errors import (
    BodyTooLargeError,
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    RequestError,
    RequestTimeoutError,
)
from appliance.gateway import reply
from appliance.http1.types import HOST, ClientEvents, Request, without_upgrade

if TYPE_CHECKING:
    from appliance.http1.server import Server

LOG = logging.getLogger(__name__)

MAX_HEADERS = 32 * 1024
"""Bytes of one request's head. nginx in front allows 32 KB as well; an API key has 60."""

LEAST_READ = 16 * 1024
"""Bytes that a client must take of what waits for it within ``reader_timeout_s``; less is not reading."""

LINGER_S = 2.0
"""Seconds for which a refused client may go on sending, unread, before its connection is cut."""

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


class HeadersTooLargeError(RequestError):
    """431: the head is over the limit."""

    status = 431
    kind = "invalid_request_error"
    code = "headers_too_large"

    def __init__(self) -> None:
        super().__init__(f"The headers are over the limit of {MAX_HEADERS} bytes")


class ClientConnection(asyncio.Protocol):
    """One client's connection; answers its requests in order, one at a time."""

    __slots__ = (
        "_body",
        "_chunked",
        "_close",
        "_cors",
        "_current",
        "_due",
        "_fresh",
        "_head_only",
        "_head_size",
        "_headers",
        "_host",
        "_limit",
        "_moved",
        "_parser",
        "_plain",
        "_request",
        "_server",
        "_size",
        "_taken",
        "_target",
        "_transport",
        "_unread",
        "_waiting",
        "answering",
        "deadline",
        "exchange",
        "phase",
        "slow",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._plain = b""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_size = 0
        self._host = b""
        """Of the request that is being received, once its head is whole."""
        self._cors = b""
        """Header lines of the answer being written, for the page that asked."""
        self._due = 0.0
        self._fresh = True
        self._body: list[bytes] = []
        self._size = 0
        self._unread = 0
        self._limit = 0
        self._moved = False
        self._taken = False
        self._request: Request | None = None
        self._current: Request | None = None
        """The request that is being answered."""
        self._waiting: deque[Request | RequestError] = deque()
        self._chunked = False
        self._head_only = False
        self._close = False
        self.answering = False
        self.slow = False
        self.exchange: ClientEvents | None = None
        self.phase = "idle"
        self.deadline = 0.0

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there; it has the time of a head to say something."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)
        self.deadline = self._server.now() + self._server.timeouts.head_s

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what it cannot read is answered 400 and ends the connection."""
        if self.phase == "closing":
            return
        if self.phase == "idle":
            self.phase = "head"
            self._due = self._server.timeouts.head_s
        self._moved = self._taken = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            self._without_upgrades(data, error)
        except httptools.HttpParserError as error:
            self._refuse(self._cause(error))
        if self._due:
            # Most requests come whole, and need no time to come.
            if self.phase in ("head", "body"):
                self._await(self._due)
            self._due = 0.0
        if not self._fresh and not self._moved and self.phase != "closing":
            # A head, a trailer or a chunk's extension that goes on and on: the parser keeps what it has of it.
            self._head_size += len(data)
            if self._head_size > MAX_HEADERS:
                self._refuse(HeadersTooLargeError())
        if self._waiting:
            self._follow()

    def eof_received(self) -> None:
        """A client that closes its half will not read the answer either; asyncio closes the rest."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Tell whoever is answering."""
        self.phase = "closed"
        self._server.connections.discard(self)
        self._waiting.clear()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()
        self._break_off(None)
        self._server.look()

    def pause_writing(self) -> None:
        """The client lags behind."""
        self.slow = True
        self._await_reader()
        if self.exchange is not None:
            self.exchange.client_slow()

    def resume_writing(self) -> None:
        """The client caught up."""
        self.slow = False
        if self.exchange is not None:
            self.exchange.client_ready()
        if self.phase == "idle":
            self._await(self._server.timeouts.idle_s)
        elif self.phase in ("head", "body"):
            self._await(self._server.timeouts.body_s)
        self._follow()

    # What the parser calls.

    def on_url(self, url: bytes) -> None:
        """The request's target, perhaps in pieces."""
        self._fresh = False
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; those of :data:`SINGLE` once only."""
        self._head_size += len(name) + len(value)
        if self._head_size > MAX_HEADERS:
            raise HeadersTooLargeError
        if self._request is not None:
            # A trailer. Nobody here wants one, and the next request must not inherit it (RFC 9110, 6.5.1).
            return
        name = name.lower()
        if name in self._headers:
            if name in SINGLE:
                if name in REPEATABLE and value == self._headers[name]:
                    return
                raise InvalidRequestError(f"The header {name.decode()} is there twice; send it once")
            value = self._headers[name] + b", " + value
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        """Let the application refuse before a body is read; llhttp has checked the framing."""
        parser, headers = self._parser, self._headers
        version = parser.get_http_version()
        request = Request(
            parser.get_method().decode(),
            self._target,
            headers,
            self._server.request_id(),
            # In HTTP/1.0 it is the end of the connection that ends a stream.
            close=not parser.should_keep_alive() or version == "1.0",
            http10=version == "1.0",
        )
        self._target, self._headers, self._head_size, self._moved = b"", {}, 0, True
        self._request = request
        if version not in ("1.0", "1.1"):
            raise InvalidRequestError(f"HTTP/{version} is not spoken here; use HTTP/1.1", code="invalid_http")
        host = headers.get(b"host")
        if host is None:
            if version == "1.1":
                raise InvalidRequestError("The header Host is missing; HTTP/1.1 needs it", code="invalid_http")
        elif host != self._host:
            if not HOST.fullmatch(host):
                raise InvalidRequestError(
                    "The header Host names no host; write a name, and a port", code="invalid_http"
                )
            self._host = host
        if parser.should_upgrade():
            # The parser reads no body after this.
            if request.method == "CONNECT":
                raise MethodNotAllowedError("This is no proxy; send requests for what it serves itself")
            self._plain = without_upgrade(request)
            self._request = None
            return
        self._limit = self._server.handler.begin(request)
        length = headers.get(b"content-length")
        if length is not None and int(length) > self._limit:
            raise self._too_large(request)
        if not self.answering:
            self.phase = "body"
            self._due = self._server.timeouts.body_s
            if headers.get(b"expect", b"").lower() == b"100-continue":
                self._server.outbox.write(self._transport, reply.CONTINUE)

    def on_body(self, data: bytes) -> None:
        """A piece of the body; over the limit nothing more is kept."""
        self._head_size, self._moved = 0, True
        self._size += len(data)
        if self._size > self._limit and self._request is not None:
            raise self._too_large(self._request)
        self._body.append(data)

    def on_message_complete(self) -> None:
        """A whole request: answered at once, or after the one before it."""
        request = self._request
        if request is None:
            return
        parts = self._body
        if parts:
            request.body = parts[0] if len(parts) == 1 else b"".join(parts)
            self._body = []
            self._size = 0
        self._request = None
        self._fresh = True
        if self.answering or self.slow or self._taken:
            # Pipelined: the next ones wait, and the client is not read until their turn comes. One answer to a
            # turn of the loop, and none to who does not read, or his answers would fill the memory.
            self._waiting.append(request)
            self._transport.pause_reading()
        else:
            self._taken = True
            self._dispatch(request)

    # What the application calls.

    @property
    def buffered(self) -> int:
        """Bytes written that the client has not taken."""
        return self._transport.get_write_buffer_size()

    def answer(self, status: int, body: bytes, kind: bytes = reply.JSON, headers: bytes = b"") -> None:
        """One whole answer; a request that has its answer gets no second one."""
        if not self.answering:
            return
        if self.phase != "closed":
            if self._cors or not headers.startswith(b"x-request-id: "):
                headers = self._completed(headers)
            data = reply.encode_response(status, body, kind, headers, close=self._closes)
            if self._head_only:
                # Who asked for a head takes a body for the next answer.
                data = data[: len(data) - len(body)]
            self._server.outbox.write(self._transport, data)
        self._finish()

    def answer_error(self, error: RequestError, path: str, headers: bytes = b"") -> None:
        """``error`` as a whole answer."""
        body = reply.error_body(error, path)
        self.answer(error.status, body, reply.JSON, headers + reply.error_headers(error))

    def start_stream(self, status: int, headers: bytes) -> None:
        """The head of a streamed answer; :meth:`write` and :meth:`end_stream` follow."""
        if self.phase != "closed":
            self._server.outbox.write(
                self._transport,
                reply.stream_head(status, self._completed(headers), chunked=self._chunked, close=self._closes),
            )

    def write(self, data: bytes) -> None:
        """A piece of a streamed answer."""
        if self.phase != "closed":
            self._server.outbox.write(
                self._transport, b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data
            )

    def end_stream(self, data: bytes = b"") -> None:
        """The end of a streamed answer, after a last piece."""
        if not self.answering:
            return
        if self.phase != "closed":
            if self._chunked:
                self._server.outbox.write(
                    self._transport, b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data) if data else reply.LAST_CHUNK
                )
            elif data:
                self._server.outbox.write(self._transport, data)
        self._finish()

    def cut(self) -> None:
        """End the connection at once, whatever was still to be said."""
        self._transport.abort()

    # What the server calls.

    def expire(self, now: float) -> None:
        """End what took too long: a head, a body, idling, or reading."""
        if now <= self.deadline or self.phase == "closed":
            return
        if self.slow or self.phase == "closing":
            if 0 < self._outstanding() <= self._unread - LEAST_READ:
                self._await_reader()
            else:
                self.cut()
        elif self.answering:
            return
        elif self.phase in ("head", "body"):
            what = "headers" if self.phase == "head" else "body"
            self._refuse(RequestTimeoutError(f"Your request's {what} did not come in time; send it again"))
        else:
            self._transport.close()

    def drain(self) -> None:
        """Close between requests, now or after the one being answered."""
        self._close = True
        if self.phase == "idle" and not self.answering:
            self._transport.close()

    # Inside.

    @property
    def _closes(self) -> bool:
        return self._close or self._server.draining

    def _dispatch(self, request: Request) -> None:
        if self.phase == "closed":
            # It was pipelined, and its client left before its turn came.
            return
        self.answering = True
        self.phase = "answer"
        self._current = request
        self._close = self._close or request.close
        self._chunked = not request.http10
        self._head_only = request.method == "HEAD"
        if self._server.browsers:
            self._cors = self._server.origins.headers(request.headers.get(b"origin"))
        try:
            self._server.handler.handle(request, self)
        except RequestError as error:
            self.answer_error(error, request.api)
        except Exception as error:  # noqa: BLE001 - whatever it is, the request gets its one answer
            failure = self._internal(error, request)
            if self.answering:
                self.answer_error(failure, request.api)

    def _finish(self) -> None:
        """The answer is written: close, or take the next request."""
        self.exchange = None
        self.answering = False
        if self._server.draining:
            self._server.look()
        if self.phase == "closed":
            return
        if self._closes:
            self.phase = "closing"
            self._server.outbox.flush()
            self._await_reader()
            if self._fresh:
                self._transport.close()
            else:
                # The client is still sending: closing now would reset the connection and lose our answer.
                self._transport.write_eof()
                if not self.buffered:
                    self.deadline = self._server.now() + LINGER_S
            return
        if self._fresh:
            self.phase = "idle"
            self._await(self._server.timeouts.idle_s)
        else:
            self.phase = "head" if self._request is None else "body"
            self._await(self._server.timeouts.body_s)
        self._follow()

    def _await(self, seconds: float) -> None:
        """The client has ``seconds`` for what it does next; one that lags has the reader's time instead."""
        if not self.slow:
            self.deadline = self._server.now() + seconds

    def _await_reader(self) -> None:
        """From now on the client has its time to take what was written."""
        self._unread = self._outstanding()
        self.deadline = self._server.now() + self._server.timeouts.read_s

    def _outstanding(self) -> int:
        """Bytes that the client's machine has not taken: ours, and those in the kernel, which may be megabytes."""
        number = self._transport.get_extra_info("socket").fileno()
        if number < 0:
            return 0
        return self.buffered + int.from_bytes(fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def _follow(self) -> None:
        """Take what was pipelined, once the answers before it are written and read."""
        if not self._waiting or self.answering or self.slow or self.phase in ("closing", "closed"):
            return
        following = self._waiting.popleft()
        if not self._waiting:
            self._transport.resume_reading()
        if isinstance(following, RequestError):
            self._refuse(following)
        else:
            self._server.loop.call_soon(self._dispatch, following)
            self.answering = True

    def _refuse(self, error: RequestError) -> None:
        """Answer ``error`` and end the connection: where the next request would begin is not known."""
        if self.answering:
            # The one being answered has its right; this comes after it.
            self._waiting.append(error)
            self._transport.pause_reading()
            return
        self.answering = True
        self._close = True
        request = self._current = self._request or self._unfinished()
        self._head_only = request.method == "HEAD"
        self._cors = self._server.origins.headers(request.headers.get(b"origin"))
        self._break_off(error)
        self.answer_error(error, request.api)

    def _unfinished(self) -> Request:
        """The request of a head that never became whole, as far as it is known."""
        return Request("", self._target, self._headers, self._server.request_id(), close=True, http10=False)

    def _too_large(self, request: Request) -> RequestError:
        error = BodyTooLargeError(f"The body is over the limit of {self._limit} bytes")
        return self._server.handler.too_large(request, error)

    def _completed(self, headers: bytes) -> bytes:
        """Header lines of an answer, with those that every answer to the request has."""
        request = self._current
        if request is None:
            return headers
        if not headers.startswith(b"x-request-id: "):
            headers = reply.id_headers(request.id, request.api) + headers
        return headers + self._cors if self._cors else headers

    def _without_upgrades(self, piece: bytes | memoryview, upgrade: httptools.HttpParserUpgrade) -> None:
        """Parse on behind a request for an upgrade, and behind each that follows in the same read.

        Nothing is upgraded here: the request goes on as if it had not asked for that (RFC 9110, 7.8).
        """
        pieces: list[bytes | memoryview] = []
        while True:
            plain, self._plain = self._plain, b""
            if plain:
                self._parser = httptools.HttpRequestParser(self)
                pieces += [memoryview(piece)[upgrade.args[0] :], plain]
            try:
                while pieces:
                    piece = pieces.pop()
                    self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade as another:
                upgrade = another
            except httptools.HttpParserError as error:
                self._refuse(self._cause(error))
                return
            else:
                return

    def _cause(self, error: httptools.HttpParserError) -> RequestError:
        """Why the parser stopped: bytes that are not HTTP, a refusal, or an error of ours."""
        if not isinstance(error, httptools.HttpParserCallbackError):
            return InvalidRequestError(f"This is not an HTTP/1.1 request: {error}", code="invalid_http")
        cause = error.__context__
        if isinstance(cause, RequestError):
            return cause
        return self._internal(cause or error, self._request)

    @staticmethod
    def _internal(error: BaseException, request: Request | None) -> RequestError:
        request_id = request.id if request is not None else ""
        LOG.error("the gateway failed on a request", exc_info=error, extra={"fields": {"request_id": request_id}})
        return InternalError(f"The gateway failed on this request; its log has the reason under {request_id}")

    def _break_off(self, error: RequestError | None) -> None:
        request, self._request = self._request, None
        if request is not None:
            self._server.handler.broken_off(request, error)
