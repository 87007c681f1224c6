"""Writes files that outlive a process: completely or not at all, with an error message for every refusal.

Each function raises :class:`~appliance.errors.StoreError` that names the file, the cause and the fix. The parts of
`make up` write through these functions only; a test holds them to that.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

from appliance.errors import StoreError, existing


def make_folder(path: Path) -> None:
    """Make the folder ``path`` and its parents unless they exist."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError.unwritable(path, error) from None


def replace(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write ``text`` to ``path`` with permission bits ``mode``; readers see the old file or the new one."""
    draft = path.with_name(f".{path.name}.new")
    try:
        # A killed process may have left a draft, with another owner and other permissions.
        draft.unlink(missing_ok=True)
        try:
            number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(number)
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError.unwritable(path, error) from None


def sync_folder(path: Path) -> None:
    """Make the names in the folder ``path`` durable: a file that was replaced there survives a power cut."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        raise StoreError.unwritable(path, error) from None


def open_log(path: Path) -> BinaryIO:
    """Open ``path`` for appending; make its folder first."""
    make_folder(path.parent)
    try:
        return path.open("ab")
    except OSError as error:
        raise StoreError.unwritable(path, error) from None


def move(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``."""
    try:
        source.rename(target)
    except OSError as error:
        raise StoreError.unwritable(target, error) from None


def read(path: Path) -> bytes | None:
    """Return the content of ``path``; ``None`` if it does not exist."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError.unreadable(path, error) from None


def require_room(path: Path) -> None:
    """Raise :class:`StoreError` if the disk of ``path`` is full: the likely reason why a program failed.

    The program itself could not log it there.
    """
    space = os.statvfs(existing(path))
    if space.f_bavail == 0 or (space.f_files > 0 and space.f_favail == 0):
        raise StoreError.unwritable(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
