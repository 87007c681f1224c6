"""A client of the gateway's control socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.errors import RequestError, StartError
from appliance.system.http_request import NO_RESPONSE, send_to_socket

SOCKET = "control.sock"
"""Name of the socket in the gateway's data folder. It is here because a client must not import the gateway."""

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


def drain(folder: Path, replica: str, reason: str) -> dict[str, Any]:
    """Send no new request to ``replica``, also after a restart of the gateway; its running requests finish.

    Args:
        folder: The gateway's data folder.
        replica: A replica by its name in :func:`status`.
        reason: One line of at most 300 characters; clients see it if no other replica serves the model.

    Returns:
        ``replica``, ``draining`` (the reason), ``in_flight`` (its sequences) and ``saved``. ``saved`` is false if
        the gateway cannot write its data folder: then a restart ends the drain. A repeated call tries again.

    Raises :class:`StartError` if no gateway listens there, :class:`RequestError` with status 404 if the site has no
    such replica.
    """
    return _send(folder, "POST", "/drain", {"replica": replica, "reason": reason})


def undrain(folder: Path, replica: str) -> dict[str, Any]:
    """Send requests to ``replica`` again; return and raise as :func:`drain` does."""
    return _send(folder, "POST", "/undrain", {"replica": replica})


def pause(folder: Path, reason: str, retry_after_s: float) -> dict[str, Any]:
    """Make the whole gateway reject new and waiting requests; the running ones finish.

    A restart of the gateway ends the pause, so a caller that holds it repeats the call every few seconds.

    Args:
        folder: The gateway's data folder.
        reason: One line of at most 300 characters, for the clients.
        retry_after_s: ``Retry-After`` of the rejected requests in seconds, 1 to 86400.

    Returns:
        ``paused`` (the reason) and ``in_flight`` (requests that still run).

    Raises :class:`StartError` if no gateway listens there.
    """
    return _send(folder, "POST", "/pause", {"reason": reason, "retry_after_s": retry_after_s})


def resume(folder: Path) -> dict[str, Any]:
    """Make the gateway accept requests again; return and raise as :func:`pause` does."""
    return _send(folder, "POST", "/resume", {})


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
