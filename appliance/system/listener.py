"""A socket that listens on a port, or the error with the cause and another port."""

from __future__ import annotations

import errno
import socket

from appliance.errors import StartError


def bind(host: str, port: int, alternative: str = "another gateway.port in the configuration") -> socket.socket:
    """Return a socket bound to ``host`` and ``port``.

    Raises :class:`StartError` with the cause and ``alternative``, the place of another port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OverflowError:
        listener.close()
        raise StartError(f"{port} is not a valid port; use a number from 1 to 65535") from None
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} on {host} is used by another program"
            raise StartError(f"{message}; use {alternative}") from None
        if error.errno == errno.EACCES:
            raise StartError(f"port {port} on {host} needs root; use {alternative}") from None
        raise StartError(f"cannot listen on {host} port {port} ({error.strerror}); check gateway.host") from None
    return listener
