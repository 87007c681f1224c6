"""Reads the state of a ZFS pool from the kernel's statistics.

Unlike ``zpool``, which waits for the lock that a suspended pool holds, this file is read without a lock and without
a child process.
"""

from __future__ import annotations

from pathlib import Path

HEALTHY = "ONLINE"


def read_pool(name: str, root: Path = Path("/")) -> str:
    """Return the state of the pool ``name`` in ZFS's words, or ``ABSENT`` if it is not imported."""
    try:
        return (root / "proc/spl/kstat/zfs" / name / "state").read_text().strip() or "UNKNOWN"
    except FileNotFoundError:
        return "ABSENT"
    except OSError as error:
        return f"UNREADABLE ({error.strerror})"
