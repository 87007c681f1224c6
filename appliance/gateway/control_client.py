"""A client of the gateway's control socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.errors import RequestError, StartError
from appliance.gateway.control_socket import SOCKET
from appliance.system.http_request import NO_RESPONSE, send_to_socket

TIMEOUT_S = 10.0


def status(folder: Path) -> dict[str, Any]:
    """Return the status of the gateway with this data ``folder``: its engines, models and on-demand engines.

    Raises :class:`StartError` if no gateway listens there.
    """
    return _send(folder, "GET", "/status", None)


def swap(folder: Path, model: str) -> dict[str, Any]:
    """Make the gateway load ``model``, or the model of that role; return its response, which names the model.

    Raises :class:`StartError` if no gateway listens there, :class:`RequestError` with its reason if it rejects the
    request.
    """
    return _send(folder, "POST", "/swap", {"model": model})


def _send(folder: Path, method: str, path: str, body: object) -> dict[str, Any]:
    try:
        response = send_to_socket(folder / SOCKET, path, method=method, body=body, timeout_s=TIMEOUT_S)
        table: dict[str, Any] = response.json()
    except PermissionError:
        raise StartError(f"{folder / SOCKET} belongs to the gateway's user; run this as that user") from None
    except (*NO_RESPONSE, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        fix = "start it, or name its configuration with --config"
        raise StartError(f"no gateway responds on {folder / SOCKET} ({reason}); {fix}") from None
    if response.status >= 400:
        reported = table["error"]
        rejection = RequestError(reported["message"], code=reported["code"], param=reported["param"])
        rejection.status = response.status
        rejection.kind = reported["type"]
        raise rejection
    return table
