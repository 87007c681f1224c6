"""Free TCP ports for servers of tests: no two processes on this machine get the same one."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from functools import cache
from itertools import chain
from pathlib import Path

FIRST = 10_000
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""The kernel's range for outgoing connections. A port from it can be taken between the choice and the server's
start, so ports are chosen below it."""

_TAKEN: set[int] = set()


def free_port() -> int:
    """Return a port on which nothing listens and which this function returns to no other running process."""
    first_outgoing = int(RANGE.read_text().split()[0])
    candidates = range(FIRST, first_outgoing if first_outgoing > FIRST + 1000 else 65_536)
    # Two runs that begin at the same port would compete for each of them.
    begin = random.randrange(len(candidates))
    for port in chain(candidates[begin:], candidates[:begin]):
        if port not in _TAKEN and _reserved(port) and _unused(port):
            _TAKEN.add(port)
            return port
    raise RuntimeError(f"no port from {candidates[0]} to {candidates[-1]} is free")


def _reserved(port: int) -> bool:
    """Lock byte ``port`` of a file that all runs share; the kernel releases the lock when this process ends."""
    try:
        fcntl.lockf(_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


@cache
def _file() -> int:
    # Opened once: to close any descriptor of the file would release all locks of this process.
    path = Path(tempfile.gettempdir()) / f"appliance-test-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _unused(port: int) -> bool:
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.socket(family) as listener:
            try:
                listener.bind((address, port))
            except OSError:
                return False
    return True
