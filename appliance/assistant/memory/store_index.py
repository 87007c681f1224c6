"""Indexes of stores in memory: made from the passages of the database, kept current, bounded together.

The database is the truth. A search compares the counter ``changes`` of the store with that of its index. If they
differ, the index adds and removes single passages. Another embedder makes the index anew.

Qdrant searches the vectors of a large store. Its index here has the terms, texts, dates and attributes only.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
from sqlalchemy import Connection

from appliance.assistant.memory.qdrant_sync import QdrantSync
from appliance.assistant.memory.qdrant_vectors import QdrantVectors
from appliance.assistant.missing import not_found
from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.assistant.retrieval.index import HybridIndex, IndexedPassage
from appliance.assistant.retrieval.vectors import VectorIndex
from appliance.assistant.store.database import Database
from appliance.assistant.store.passages import (
    StoredPassage,
    attributes_of,
    passages_of,
    state_of,
    versions_of,
)

KIND = "vector_store"
"""The kind of the object that a store is, in errors."""

MAX_BYTES = 2 * 2**30
"""Memory of all indexes together; the one in use may exceed it alone."""
_PASSAGE_BYTES = 2000
"""Memory of a passage in addition to its texts, terms and vector."""
_TERM_BYTES = 60
_NO_VECTOR = np.ones(1, np.float32)
"""The vector of a passage without one: no search uses it."""


class StoreIndex:
    """The index of one store; the caller holds :attr:`lock`."""

    def __init__(self, tenant: str, store_id: str, sync: QdrantSync | None = None) -> None:
        self.tenant, self.store_id = tenant, store_id
        self._sync = sync
        self.lock = threading.Lock()
        self.bytes = 0
        """Memory that the index takes, estimated."""
        self.fingerprint: EmbedderFingerprint | None = None
        self.passages = HybridIndex(VectorIndex(1, rows=0))
        self._remote: QdrantVectors | None = None
        self._changes = -1
        self._validity: dict[int, float | None] = {}
        """The passages by number, with the end of their validity."""
        self._attributes: dict[str, dict[str, Any]] = {}
        self._sizes: dict[int, int] = {}

    def refresh(self, connection: Connection, database: Database) -> None:
        """Apply what changed in the database since the last refresh; a large store searches ``database`` later.

        Raises :class:`NotFoundError` if the tenant does not have the store.
        """
        state = state_of(connection, self.tenant, self.store_id)
        if state is None:
            self._clear(None, 0, None)
            raise not_found(KIND, self.store_id)
        if state.changes == self._changes and state.fingerprint == self.fingerprint:
            return
        versions = versions_of(connection, self.tenant, self.store_id)
        remote = self._remote_of(state.fingerprint, len(versions), database)
        same_place = (remote is None) == (self._remote is None)
        if self._changes < 0 or state.fingerprint != self.fingerprint or not same_place:
            self._clear(state.fingerprint, len(versions), remote)
        attributes = attributes_of(connection, self.tenant, self.store_id)
        stale = self._stale(attributes)
        wanted = {one.number: one.valid_until for one in versions}
        for number in self._validity.keys() - wanted.keys():
            self._remove(number)
        missing = [
            number
            for number, until in wanted.items()
            if number in stale or number not in self._validity or self._validity[number] != until
        ]
        # One scan is faster than a list of most numbers.
        numbers = missing if 2 * len(missing) < len(wanted) else None
        chosen = set(missing)
        local = self._remote is None
        for one in passages_of(connection, self.tenant, self.store_id, numbers=numbers, with_vectors=local):
            if one.number in chosen:
                self._put(one, attributes.get(one.group_id, {}))
        self._attributes = attributes
        self._changes = state.changes

    def _remote_of(
        self, fingerprint: EmbedderFingerprint | None, passages: int, database: Database
    ) -> QdrantVectors | None:
        """Return the vectors in Qdrant if the store is large."""
        sync = self._sync
        if sync is None or fingerprint is None or not sync.is_large(passages, before=self._remote is not None):
            return None
        return QdrantVectors(sync, database, self.tenant, self.store_id, fingerprint)

    def _clear(self, fingerprint: EmbedderFingerprint | None, rows: int, remote: QdrantVectors | None) -> None:
        self.fingerprint, self._remote = fingerprint, remote
        dimensions = 1 if fingerprint is None or remote is not None else fingerprint.dimensions
        self.passages = HybridIndex(VectorIndex(dimensions, rows=rows), remote=remote)
        self._changes, self.bytes = -1, rows * dimensions * 4
        self._validity, self._attributes, self._sizes = {}, {}, {}

    def _stale(self, attributes: dict[str, dict[str, Any]]) -> set[int]:
        """Return the numbers of the passages whose file has other attributes now."""
        groups = {
            group
            for group in self._attributes.keys() | attributes.keys()
            if self._attributes.get(group) != attributes.get(group)
        }
        if not groups:
            return set()
        return {number for number in self._validity if self.passages[str(number)].group in groups}

    def _put(self, one: StoredPassage, attributes: dict[str, Any]) -> None:
        passage = IndexedPassage(
            key=str(one.number),
            text=one.text,
            source=one.source,
            section=one.section,
            group=one.group_id,
            indexed_text=one.indexed_text,
            date=_moment(one.date),
            valid_from=_moment(one.valid_from),
            valid_until=_moment(one.valid_until),
            attributes=attributes,
        )
        vector = one.vector if self.fingerprint is not None and self._remote is None else _NO_VECTOR
        self.passages.put(passage, vector, counts=one.counts)
        self._validity[one.number] = one.valid_until
        size = _PASSAGE_BYTES + 2 * (len(one.text) + len(one.indexed_text)) + _TERM_BYTES * len(one.counts or ())
        self.bytes += size - self._sizes.get(one.number, 0)
        self._sizes[one.number] = size

    def _remove(self, number: int) -> None:
        self.passages.remove(str(number))
        del self._validity[number]
        self.bytes -= self._sizes.pop(number)


class IndexCache:
    """The indexes of the stores that were searched last."""

    def __init__(self, database: Database, *, sync: QdrantSync | None = None, max_bytes: int = MAX_BYTES) -> None:
        self._database = database
        self._sync = sync
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._indexes: OrderedDict[tuple[str, str], StoreIndex] = OrderedDict()

    @contextmanager
    def open(self, tenant: str, store_id: str) -> Iterator[StoreIndex]:
        """Yield the current index of the store for this thread alone.

        Raises :class:`NotFoundError` if the tenant does not have the store.
        """
        key = (tenant, store_id)
        with self._lock:
            index = self._indexes.setdefault(key, StoreIndex(tenant, store_id, self._sync))
            self._indexes.move_to_end(key)
        with index.lock:
            try:
                with self._database.reading() as connection:
                    index.refresh(connection, self._database)
                yield index
            finally:
                with self._lock:
                    self._evict(key)

    @property
    def bytes(self) -> int:
        """Memory of all indexes, estimated."""
        with self._lock:
            return sum(index.bytes for index in self._indexes.values())

    def __len__(self) -> int:
        return len(self._indexes)

    def _evict(self, used: tuple[str, str]) -> None:
        """Drop empty indexes, and those that were used longest ago while there are too many bytes."""
        index = self._indexes.get(used)
        if index is not None and not len(index.passages):
            del self._indexes[used]
        total = sum(index.bytes for index in self._indexes.values())
        for key in [key for key in self._indexes if key != used]:
            if total <= self._max_bytes:
                break
            total -= self._indexes.pop(key).bytes


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
