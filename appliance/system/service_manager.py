"""Messages of a service to systemd, by the protocol of sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> None:
    """Send ``message``, such as ``READY=1`` or ``WATCHDOG=1``; do nothing outside a unit that expects messages.

    Never blocks and never fails: the watchdog of the unit notices a manager that does not receive them.
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as one,
    ):
        one.sendto(message.encode(), "\0" + name[1:] if name.startswith("@") else name)
