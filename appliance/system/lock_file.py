"""Locks that belong to processes: the kernel releases them when the last process that holds them has ended.

A lock file is never deleted, so that all processes lock the same file. Its content is only a note of the holder
(pid, address) for messages: a note of a process that ended locks nothing. Standard library only, because the
bootstrap locks before anything is installed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import StoreError

if TYPE_CHECKING:
    Note = dict[str, Any]


IN_USE = ".in-use"
"""Name of the file in a Python environment that each running service locks for reading."""


class HeldError(Exception):
    """Another process holds the lock; ``note`` is what it wrote about itself, empty if it is just starting."""

    def __init__(self, note: Note) -> None:
        super().__init__("the lock is held")
        self.note = note


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds.

    ``number`` is its file descriptor: a child that inherits it holds the lock too. ``left`` is the note of a
    holder that was killed, empty after an orderly end.
    """

    path: Path
    number: int
    left: Note

    def note(self, **facts: Any) -> None:
        """Write the note of this holder. Raises :class:`StoreError` if the file cannot be written."""
        content = json.dumps({"pid": os.getpid(), **facts}).encode()
        try:
            os.pwrite(self.number, content, 0)
            os.ftruncate(self.number, len(content))
        except OSError as error:
            raise StoreError.unwritable(self.path, error) from None

    def release(self) -> None:
        """Remove the note and release the lock, unless a child still holds it."""
        # The note stays on a disk that has become read-only; it locks nothing.
        with contextlib.suppress(OSError):
            os.ftruncate(self.number, 0)
        os.close(self.number)


def take(path: Path) -> Lock:
    """Take the lock ``path`` at once.

    Raises :class:`HeldError` if another process holds it and :class:`StoreError` if the file cannot be opened.
    """
    return _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wait(path: Path, waiting: Callable[[Note], None]) -> Lock:
    """Take the lock ``path``; call ``waiting`` with the holder's note before waiting for it.

    Raises :class:`StoreError` if the file cannot be opened.
    """
    try:
        return take(path)
    except HeldError as held:
        waiting(held.note)
    return _lock(path, fcntl.LOCK_EX)


def is_held(path: Path) -> bool:
    """Return whether a living process holds the lock ``path``; a file that does not exist is not held.

    Raises :class:`StoreError` if the file cannot be read.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError.unreadable(path, error) from None
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(number)
    return False


def share(path: Path) -> int | None:
    """Hold ``path`` together with other readers until this process ends; return its descriptor.

    Returns ``None`` if the file cannot be read. Raises :class:`HeldError` if another process holds it exclusively.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        # Not an environment of our installer, or not one that this user may change: nothing to wait for.
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        note = _note(number)
        os.close(number)
        raise HeldError(note) from None
    return number


def _lock(path: Path, how: int) -> Lock:
    while True:
        number = _open(path)
        try:
            fcntl.flock(number, how)
            if _is(path, number):
                return Lock(path, number, _note(number))
        except BlockingIOError:
            note = _note(number)
            os.close(number)
            raise HeldError(note) from None
        except OSError as error:
            os.close(number)
            raise StoreError.unwritable(path, error) from None
        except BaseException:
            os.close(number)
            raise
        # The file was deleted in the meantime (`make clean`): a lock on it excludes no one.
        os.close(number)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS):
            _raise_if_held(path)
        raise StoreError.unwritable(path, error) from None


def _raise_if_held(path: Path) -> None:
    """Raise :class:`HeldError` if a process of another user holds ``path``.

    That is a better reason than the permissions of the file.
    """
    number = share(path)
    if number is not None:
        os.close(number)


def _is(path: Path, number: int) -> bool:
    try:
        there, mine = path.stat(), os.fstat(number)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _note(number: int) -> Note:
    try:
        found = json.loads(os.pread(number, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
