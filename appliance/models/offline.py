"""Copies the files of a lock from another store, such as a disk on USB, into a store.

A file appears in the store only after its SHA-256 matched the lock. Until then its bytes are in
``partial/SHA256``, where an interrupted copy resumes. One copy at a time writes into a store.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from appliance.errors import StoreError
from appliance.models.lock import Entry, digest
from appliance.system import files, lock_file

BLOCK = 1 << 22
"""Bytes that are read, hashed and written at once."""


def import_files(entries: list[Entry], source: Path, store: Path, report: Callable[[str], None]) -> int:
    """Copy each file of ``entries`` that ``store`` lacks from ``source``; return how many were copied.

    ``report`` gets a line before each copy. Raises :class:`StoreError` if another copy runs, the room is too
    small, or a file of ``source`` is missing or differs from the lock. Files copied before that remain.
    """
    files.make_folder(store / "partial")
    try:
        held = lock_file.take(store / "partial" / "lock")
    except lock_file.HeldError:
        raise StoreError(f"{store}: another import runs; wait for its end") from None
    try:
        missing = [entry for entry in entries if not _is_whole(entry.path(store), entry)]
        _require_room(missing, store)
        for number, entry in enumerate(missing, 1):
            report(f"{number} of {len(missing)}: {entry.repository} {entry.file}, {entry.size} bytes")
            _copy(entry, source, store)
        return len(missing)
    finally:
        held.release()


def _is_whole(path: Path, entry: Entry) -> bool:
    try:
        return path.stat().st_size == entry.size and digest(path) == entry.sha256
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError.unreadable(path, error) from None


def _partial(entry: Entry, store: Path) -> Path:
    return store / "partial" / entry.sha256


def _require_room(missing: list[Entry], store: Path) -> None:
    present = 0
    for entry in missing:
        with suppress(FileNotFoundError):
            present += min(_partial(entry, store).stat().st_size, entry.size)
    needed = sum(entry.size for entry in missing) - present
    free = shutil.disk_usage(store).free
    if needed > free:
        raise StoreError(f"{store}: the import needs {needed} bytes, the disk has {free}; free some and try again")


def _copy(entry: Entry, source: Path, store: Path) -> None:
    origin, partial, target = entry.path(source), _partial(entry, store), entry.path(store)
    try:
        size = origin.stat().st_size
    except OSError as error:
        raise StoreError.unreadable(origin, error) from None
    if size != entry.size:
        raise StoreError(f"{origin}: {size} bytes, the lock has {entry.size}; use a whole copy")
    if _append(origin, partial, entry.size) != entry.sha256:
        partial.unlink()
        raise StoreError(f"{origin}: the copy's SHA-256 is not the lock's; try again, then use a whole copy")
    files.make_folder(target.parent)
    files.move(partial, target)
    files.sync_folder(target.parent)


def _append(origin: Path, partial: Path, size: int) -> str:
    """Append to ``partial`` the bytes of ``origin`` that it lacks; return the SHA-256 of the result."""
    hashed = hashlib.sha256()
    try:
        with partial.open("a+b") as into:
            if into.tell() > size:
                into.truncate(0)
            into.seek(0)
            while block := into.read(BLOCK):
                hashed.update(block)
            with origin.open("rb") as bytes_of:
                bytes_of.seek(into.tell())
                while block := bytes_of.read(BLOCK):
                    hashed.update(block)
                    into.write(block)
            into.flush()
            os.fsync(into.fileno())
    except OSError as error:
        raise StoreError.unwritable(partial, error) from None
    return hashed.hexdigest()
