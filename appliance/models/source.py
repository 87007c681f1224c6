"""The place from which a store gets the bytes of a file: a model hub, or a folder such as a disk on USB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from appliance.models.lock import Entry

BLOCK = 1 << 20
"""Bytes that are read, hashed and written at once."""

Advance = Callable[[int], None]
"""Is called with the number of bytes that one step has added; negative if they are read again from the start."""


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """The rest of a file: it begins at byte ``offset``, and ``tag`` names its content, empty if unknown."""

    offset: int
    tag: str
    blocks: Iterator[bytes]


class WeightSource(Protocol):
    """Opens files of a lock; several threads call it at the same time."""

    def open(self, entry: Entry, offset: int, tag: str) -> AbstractContextManager[OpenedFile]:
        """Open ``entry`` at byte ``offset``; at 0 if the source cannot, or its content is not that of ``tag``.

        Raises :class:`~appliance.errors.InterruptedTransferError` if a retry can succeed, else
        :class:`~appliance.errors.StoreError`; the iterator of blocks raises the same.
        """
