"""What a client's connection hands over: a request, to a handler; what it tells of its client, to an exchange."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from appliance.errors import RequestError
from appliance.gateway.paths import KNOWN, path_of

if TYPE_CHECKING:
    from appliance.http1.connection import ClientConnection

HOST = re.compile(rb"([A-Za-z0-9._~-]*|\[[0-9A-Fa-f:.]+\])(:\d{0,5})?")
"""A host and perhaps a port, spelled plainly: what is more can be read as another address or path."""


class Request:
    """One request: its head when it begins, its body when it is whole."""

    __slots__ = ("body", "close", "generation", "headers", "http10", "id", "method", "owner", "path", "target")

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
        self.path = KNOWN.get(target) or path_of(target)
        self.id = request_id
        """What its answer, its usage row and its log lines name it by."""
        self.headers = headers
        self.close = close
        self.http10 = http10
        self.body = b""
        self.generation = 0
        """Which keys there were when it was authenticated."""
        self.owner: object = None
        """Who asked, once the application knows."""

    @property
    def api(self) -> str:
        """The path whose API gives the shape of errors: Anthropic's SDKs ask for the list of models, too."""
        return "/v1/messages" if b"anthropic-version" in self.headers else self.path


def without_upgrade(request: Request) -> bytes:
    """The head of ``request`` as it would have come from a client that speaks HTTP/1.1 only."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.target)]
    left_out = (b"connection", b"upgrade", b"http2-settings")
    lines += [b"%s: %s" % (name, value) for name, value in request.headers.items() if name not in left_out]
    return b"\r\n".join([*lines, b"", b""])


class ClientEvents(Protocol):
    """What happens to one request after it was handed over, as the connection needs to know it."""

    def client_gone(self) -> None:
        """Nobody waits for the answer any more."""

    def client_slow(self) -> None:
        """What was written has not been read; stop producing."""

    def client_ready(self) -> None:
        """The client caught up."""


class Handler(Protocol):
    """The application."""

    def begin(self, request: Request) -> int:
        """The head of a request is there: the bytes its body may have. Raises :class:`RequestError` to refuse."""

    def too_large(self, request: Request, error: RequestError) -> RequestError:
        """Return the answer to a request whose body is over its limit: ``error``, or one that matters more."""

    def broken_off(self, request: Request, error: RequestError | None) -> None:
        """The request began and will not become whole: it was refused, or its client left (``None``)."""

    def handle(self, request: Request, client: ClientConnection) -> None:
        """The request is whole: answer it, now or later. Raises :class:`RequestError` to refuse."""


class Timeouts:
    """Seconds a client gets: for a head, for a body, between requests, and to read what was written."""

    __slots__ = ("body_s", "head_s", "idle_s", "read_s")

    def __init__(self, head_s: float, body_s: float, idle_s: float, read_s: float) -> None:
        self.head_s, self.body_s, self.idle_s, self.read_s = head_s, body_s, idle_s, read_s
