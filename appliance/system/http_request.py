"""Sends one HTTP request and returns the complete response: for tools, checks and probes, not for the data plane.

Each request uses a connection of its own, follows no redirect and reaches the server by the rules of
:mod:`appliance.system.proxy`.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.system.proxy import route
from appliance.system.unix_socket import address

NO_RESPONSE = (OSError, http.client.HTTPException)
"""Errors of a request without a complete response: the connection failed, or the peer does not speak HTTP."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete response: status, header fields (names in lower case) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON; raises :class:`ValueError` if it is not."""
        return json.loads(self.body)


def send_request(
    url: str,
    path: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    key: str = "",
    direct: bool = False,
    timeout_s: float,
) -> HttpResponse:
    """Send a request for ``path`` to the server at ``url`` and return its response.

    ``body`` is JSON unless ``headers`` name another type; ``key`` is sent as a bearer token; ``direct`` ignores the
    proxy of the environment. ``timeout_s`` limits each wait for the server, in seconds. Raises
    :data:`NO_RESPONSE`, and :class:`~appliance.errors.UsageError` for an address or a proxy that is not valid.

    Example::

        models = send_request("http://127.0.0.1:8000", "/v1/models", key=key, timeout_s=10).json()["data"]
    """
    server = route(url, direct=direct)
    sent = {
        **server.headers,
        **({"Content-Type": "application/json"} if body is not None else {}),
        **(headers or {}),
    }
    if key:
        sent["Authorization"] = f"Bearer {key}"
    return _send(server.connection(timeout_s), method, server.target(path), body, sent)


def send_to_socket(
    socket_path: Path, path: str, *, method: str, body: object = None, timeout_s: float
) -> HttpResponse:
    """Send a request with the JSON ``body`` to the server that listens on the Unix socket ``socket_path``.

    Raises :data:`NO_RESPONSE`; a :class:`PermissionError` among them if the socket belongs to another user.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {} if data is None else {"Content-Type": "application/json"}
    return _send(_SocketConnection(socket_path, timeout_s), method, path, data, headers)


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with address(self._path) as name:
            self.sock.connect(name)


def _send(
    connection: http.client.HTTPConnection, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
) -> HttpResponse:
    try:
        connection.request(method, target, body, dict(headers))
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return HttpResponse(response.status, fields, response.read())
    finally:
        connection.close()
