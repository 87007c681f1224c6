"""A client of the gateway's control socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from appliance.errors import RequestError, StartError
from appliance.gateway.control_socket import SOCKET

TIMEOUT_S = 10.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


def status(folder: Path) -> dict[str, Any]:
    """What the gateway of this data folder says of itself."""
    return _ask(folder, "GET", "/status", None)


def swap(folder: Path, model: str) -> dict[str, Any]:
    """Ask it to load ``model``, or the model of that role; its answer names the model."""
    return _ask(folder, "POST", "/swap", {"model": model})


def _ask(folder: Path, method: str, path: str, body: object) -> dict[str, Any]:
    """Raises :class:`StartError` where no gateway listens, :class:`RequestError` with what it refuses."""
    connection = _UnixConnection(folder / SOCKET)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
    except PermissionError:
        raise StartError(f"{folder / SOCKET} belongs to the gateway's user; run this as that user") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise StartError(
            f"no gateway answers on {folder / SOCKET} ({reason}); start it, or name its configuration with --config"
        ) from None
    finally:
        connection.close()
    if answer.status >= 400:
        said = found["error"]
        refusal = RequestError(said["message"], code=said["code"], param=said["param"])
        refusal.status = answer.status
        refusal.kind = said["type"]
        raise refusal
    return found
