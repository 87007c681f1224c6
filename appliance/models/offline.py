"""Files of another store, such as a disk on USB, as a source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from appliance.errors import StoreError
from appliance.models.lock import Entry
from appliance.models.source import BLOCK, OpenedFile


class FolderSource:
    """The store at ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def open(self, entry: Entry, offset: int, tag: str) -> Iterator[OpenedFile]:
        """Open the file of ``entry`` at ``offset``; raises :class:`StoreError` if its size is not the lock's."""
        origin = entry.path(self._folder)
        file = _opened(origin, entry.size, offset)
        try:
            yield OpenedFile(offset, tag, _blocks(file, origin))
        finally:
            file.close()


def _opened(origin: Path, expected: int, offset: int) -> BinaryIO:
    try:
        size = origin.stat().st_size
        if size != expected:
            raise StoreError(f"{origin}: {size} bytes, the lock has {expected}; use a whole copy")
        file = origin.open("rb")
        file.seek(offset)
    except OSError as error:
        raise StoreError.unreadable(origin, error) from None
    return file


def _blocks(file: BinaryIO, origin: Path) -> Iterator[bytes]:
    while True:
        try:
            block = file.read(BLOCK)
        except OSError as error:
            # The disk to examine is that of the source, not that of the store.
            raise StoreError.unreadable(origin, error) from None
        if not block:
            return
        yield block
