"""Unix sockets: the address of a path of any length, the process at the other end, and clients without TLS."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

LONGEST = 107
"""Bytes of the longest path that the kernel accepts (unix(7), ``sun_path``)."""


@contextmanager
def address(path: Path) -> Iterator[str]:
    """Yield the address with which a socket at ``path`` is bound or connected.

    It is valid until the block ends. A path that is too long is reached through a descriptor of its folder.
    """
    if len(os.fsencode(path)) <= LONGEST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class PeerCredentials(NamedTuple):
    """The process at the other end of a connection, as the kernel recorded it (unix(7), ``SO_PEERCRED``)."""

    pid: int
    uid: int
    gid: int


def peer_credentials(descriptor: int) -> PeerCredentials:
    """Return the process that connected the Unix socket ``descriptor``. Raises :class:`OSError`."""
    form = "3i"
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(form))
    return PeerCredentials(*struct.unpack(form, found))


def without_authorities() -> ssl.SSLContext:
    """Return a TLS context that trusts no authority, for an HTTP client of a Unix socket, which has no TLS.

    By default, a client loads a list of all authorities, which takes 50 ms of CPU.
    """
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
