"""The contents of uploaded files: one file of the data folder each, named by its id.

The row in the database is the truth. A crash at any point leaves one of these states, and the sweep ends them:

| name | row | meaning | sweep |
|---|---|---|---|
| id.partial | no | the upload runs or died | remove it, unless it was written recently |
| id.partial | yes | the process died before the rename | rename it to the id |
| id | yes | a file | keep |
| id.deleted | yes | the process died before the row was deleted | rename it to the id |
| id.deleted | no | a deleted file | remove it |
| id | no | a file of another database, such as one from before a restore | keep |
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from appliance.assistant.ids import is_id
from appliance.errors import StoreError
from appliance.system.files import make_folder, move, sync_folder

LOG = logging.getLogger(__name__)
FOLDER = "files"
_PARTIAL, _DELETED = ".partial", ".deleted"


class ContentDraft:
    """The content of an upload that is not complete. Each method raises :class:`StoreError` for a full disk."""

    def __init__(self, folder: Path, file_id: str) -> None:
        self.size = 0
        self._target = folder / file_id
        self._path = folder / f"{file_id}{_PARTIAL}"
        self._digest = hashlib.sha256()
        try:
            self._file = self._path.open("xb")
        except OSError as error:
            raise StoreError.unwritable(self._path, error) from None

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        self._digest.update(data)
        self.size += len(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise StoreError.unwritable(self._path, error) from None

    def finish(self) -> bytes:
        """Wait until the content is on the disk and return its SHA-256."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise StoreError.unwritable(self._path, error) from None
        return self._digest.digest()

    def publish(self) -> None:
        """Give the content the name of its file, after the row was stored."""
        move(self._path, self._target)
        sync_folder(self._target.parent)

    def discard(self) -> None:
        """Remove the draft."""
        # Closing writes the buffer, which fails again on a full disk.
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


class FileContents:
    """The contents below the data folder ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER

    def draft(self, file_id: str) -> ContentDraft:
        """Return a new draft of the content of ``file_id``."""
        make_folder(self._folder)
        return ContentDraft(self._folder, file_id)

    def open(self, file_id: str) -> BinaryIO:
        """Open the content of ``file_id``, an id that the database has.

        Raises:
            StoreError: It is missing or cannot be read.
        """
        path = self._folder / file_id
        try:
            return path.open("rb")
        except OSError as error:
            raise StoreError.unreadable(path, error) from None

    def remove(self, file_id: str, delete_row: Callable[[], bool]) -> bool:
        """Remove the content of ``file_id`` and its row by ``delete_row``; return what ``delete_row`` returned."""
        path, hidden = self._folder / file_id, self._folder / f"{file_id}{_DELETED}"
        with contextlib.suppress(FileNotFoundError):
            try:
                path.replace(hidden)
            except PermissionError as error:
                raise StoreError.unwritable(path, error) from None
        try:
            deleted = delete_row()
        except StoreError:
            with contextlib.suppress(OSError):
                hidden.replace(path)
            raise
        with contextlib.suppress(OSError):
            # The next sweep tries again.
            hidden.unlink(missing_ok=True)
        return deleted

    def sweep(self, exists: Callable[[str], bool], *, idle_s: float) -> int:
        """End the states that a crash left; return how many.

        Args:
            exists: Returns whether the database has a file with this id.
            idle_s: Seconds without a write after which an upload is dead.
        """
        ended = 0
        for path in self._folder.glob("*"):
            if path.suffix not in (_PARTIAL, _DELETED) or not is_id(path.stem):
                continue
            try:
                if path.suffix == _PARTIAL and time.time() - path.stat().st_mtime < idle_s:
                    continue
                if exists(path.stem):
                    path.replace(path.with_suffix(""))
                else:
                    path.unlink()
                ended += 1
            except OSError as error:
                LOG.warning("%s: the sweep of uploads cannot end it (%s)", path, error.strerror)
        return ended
