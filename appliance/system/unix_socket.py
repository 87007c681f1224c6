"""The address of a Unix socket at a path of any length."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
