"""The types between the server and an application: requests, responses, events and the application's methods."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote_to_bytes

from appliance.errors import RequestError

JSON = b"application/json"
SSE = b"text/event-stream; charset=utf-8"

_SCHEME = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


@lru_cache(maxsize=64)
def path_of(target: bytes) -> str:
    """Return the path of a request's target, decoded once; the text is arbitrary.

    Percent-encoded octets and the absolute form name the same path (RFC 3986, 2.3, and RFC 9112, 3.2.2):
    ``http://host/v1%2Fmodels?a=b`` is ``/v1/models``.
    """
    path = target.partition(b"?")[0]
    if path[:1] != b"/":
        found = _SCHEME.match(path)
        if found is not None:
            path = path[found.end() :] or b"/"
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("utf-8", "replace")


class Request:
    """One request: its head from the beginning, its body once it is complete."""

    __slots__ = ("body", "close", "context", "headers", "http10", "id", "method", "path", "target")

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: dict[bytes, bytes],
        request_id: str,
        *,
        close: bool,
        http10: bool,
    ) -> None:
        self.method = method
        self.target = target
        self.path = path_of(target)
        self.id = request_id
        """Names the request in its response, its usage row and its log lines."""
        self.headers = headers
        """Values by name in lower case."""
        self.close = close
        """Whether its response is the last one of the connection."""
        self.http10 = http10
        """Whether the client understands no chunks; the end of the connection ends a stream."""
        self.body = b""
        self.context: object = None
        """State of the application, which the server does not read."""


class ClientEvents(Protocol):
    """Receives the events of the client of one response; the producer of the response implements it."""

    def client_disconnected(self) -> None:
        """Stop: the client disconnected."""

    def client_slow(self) -> None:
        """Stop producing: the client has not read what was written."""

    def client_ready(self) -> None:
        """Continue: the client has read what was written."""


class Responder(Protocol):
    """Receives one response: whole, or in pieces after ``start_stream``."""

    def respond(self, status: int, body: bytes, kind: bytes = JSON, headers: bytes = b"") -> None:
        """Write a whole response; ``kind`` is its content type, ``headers`` are lines that end in CRLF."""

    def start_stream(self, status: int, headers: bytes, kind: bytes = SSE) -> None:
        """Write the head of a stream; ``kind`` is its content type."""

    def write(self, data: bytes) -> None:
        """Write a piece of the stream."""

    def end_stream(self, data: bytes = b"") -> None:
        """Write a last piece, and end the stream."""

    def abort(self) -> None:
        """Close the connection without a (whole) response."""


class ClientResponder(Responder, Protocol):
    """The response to one client's request, as the server passes it to the application."""

    listener: ClientEvents | None
    """Receives the client's events until the response ends."""


class Handler(Protocol):
    """The application. The server calls it on the event loop."""

    def begin(self, request: Request) -> int:
        """Return the limit of the body in bytes, after a complete head. Raises :class:`RequestError` to refuse."""

    def too_large(self, request: Request, error: RequestError) -> RequestError:
        """Return the error for a request whose body is over its limit: ``error``, or a more important one."""

    def record_incomplete(self, request: Request, error: RequestError | None) -> None:
        """Record a request that stays incomplete: refused with ``error``, or its client disconnected (``None``)."""

    def handle(self, request: Request, client: ClientResponder) -> None:
        """Respond to a complete request, now or later. Raises :class:`RequestError` to refuse."""

    def refuse(self, request: Request, error: RequestError, client: ClientResponder) -> None:
        """Respond with ``error``, by which the server or :meth:`handle` refuses a request."""

    def complete_headers(self, request: Request, headers: bytes) -> bytes:
        """Return the header lines of a response: ``headers`` and those that every response to ``request`` has."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for a client's head, its body, the pause between requests, and reading a response."""

    head_s: float
    body_s: float
    idle_s: float
    read_s: float
