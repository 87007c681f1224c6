"""Keeps Qdrant's points equal to the passages of large stores. The database is the truth.

A store is large above ``assistant.exact_limit`` passages. Points are made from 80 % of that: they exist in time,
and a store near the limit does not alternate between memory and Qdrant.

| points of a store | event | next |
|---|---|---|
| none | its passages exceed the share | building |
| building | a pass has stored all passages | ready |
| ready | its passages change | ready: the next pass, within seconds, adds and removes points |
| any | Qdrant has another number of points than this process stored | building |
| any | its passages are below the share, it has another embedder, or it was removed | none: points are removed |

A search needs a ready store, otherwise it is 503. After a failed search, all searches are 503 at once until a later
pass succeeds. So a server that accepts connections and is silent delays one search.

New passages are found by their words until their points exist. A removed passage is not returned even if its point
exists, because the database decides.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from appliance.assistant.background import in_background
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.metrics import MemoryMetrics
from appliance.assistant.memory.qdrant import BATCH_NUMBERS, QdrantClient, QdrantPoint, read_key
from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.assistant.store.passages import numbers_of, read_fingerprint, state_of, vectors_of
from appliance.assistant.store.schema import PASSAGES, VECTOR_STORES
from appliance.errors import ApplianceError, VectorIndexError

LOG = logging.getLogger(__name__)

PREFIX = "appliance-"
"""Begins the names of the memory's collections; others on the server stay as they are."""
PREPARED_SHARE = 0.8
POLL_S = 2.0
VERIFY_S = 60.0
"""Seconds after which a pass compares the numbers of points although no passage has changed."""
LONGEST_PAUSE_S = 15.0
"""Longest time between the end of an outage and the next pass, until which searches are 503."""
RETRY_S = 10.0
SEARCHES = 8
"""Searches of large stores at once; the others wait for them."""


def collection_of(fingerprint: EmbedderFingerprint) -> str:
    """Return the name of the collection with the vectors of one embedder."""
    return PREFIX + fingerprint.digest[:16].hex()


@dataclass(frozen=True, slots=True)
class LargeStore:
    """A store whose vectors Qdrant must have."""

    id: str
    tenant: str
    changes: int
    passages: int
    fingerprint: EmbedderFingerprint

    @property
    def collection(self) -> str:
        """The collection with its points."""
        return collection_of(self.fingerprint)


@dataclass(slots=True)
class _StoredPoints:
    """The points of a store as this process stored or counted them last."""

    collection: str
    numbers: NDArray[np.int64]
    changes: int = -1
    """The value of the store's ``changes`` that the points represent; -1 for none."""
    ready: bool = False

    def remain(self, collection: str, numbers: NDArray[np.int64]) -> bool:
        """Return whether a ready store still is, with ``numbers`` on the server.

        More points than expected are those of a request whose response was lost.
        """
        lost = np.setdiff1d(self.numbers, numbers, assume_unique=True)
        return self.ready and self.collection == collection and not len(lost)


class QdrantSync:
    """The points of one assistant, and whether a search may use them."""

    def __init__(self, context: AssistantContext) -> None:
        settings = context.settings
        self._database = context.database
        self._metrics = context.shared(MemoryMetrics)
        self.limit = settings.exact_limit
        self.client: QdrantClient | None = None
        """None for a site without Qdrant."""
        if settings.qdrant_url is not None:
            self.client = QdrantClient(settings.qdrant_url, read_key(settings.qdrant_key_path(Path.cwd())))
        self._points: dict[str, _StoredPoints] = {}
        self._counted: dict[str, tuple[int, int]] = {}
        """By store, its ``changes`` and the number of its passages at that time."""
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pass = threading.Lock()
        self._failures = self._passed = 0
        """Failed searches, and how many of them happened before the last successful pass began."""
        self.executor = ThreadPoolExecutor(SEARCHES, "large-store")
        """The threads that wait for the server in a search: all others remain for requests without Qdrant."""

    def close(self) -> None:
        """Close all connections; no search follows."""
        if self.client is not None:
            self.client.close()

    def is_large(self, passages: int, *, before: bool) -> bool:
        """Return whether Qdrant searches a store with ``passages``; ``before`` is the previous result."""
        if self.client is None:
            return False
        return passages > (self.limit * PREPARED_SHARE if before else self.limit)

    def require(self, store_id: str, collection: str) -> QdrantClient:
        """Return the client for a search of the store; raise :class:`VectorIndexError` unless it is ready."""
        points = self._points.get(store_id)
        if self.client is None or points is None or points.collection != collection or not points.ready:
            raise VectorIndexError(
                f"the vector index of {store_id} is not complete yet; its passages are being added",
                retry_after=RETRY_S,
            )
        if self._failures != self._passed:
            raise VectorIndexError("Qdrant failed in the last search and is not current again", retry_after=RETRY_S)
        return self.client

    def adopt(self, store_ids: Collection[str]) -> None:
        """Permit searches of those large stores whose points are complete; the server stays as it is.

        A command uses it instead of :meth:`step`, because the running assistant makes the points. Raises
        :class:`VectorIndexError` if there is a large store and the server cannot respond, and :class:`StoreError`.
        """
        client = self.client
        if client is None:
            return
        with self._pass:
            with self._database.reading() as connection:
                large = [
                    one for one in self._large(connection) if one.id in store_ids and one.passages > self.limit
                ]
                wanted = {one.id: numbers_of(connection, one.tenant, one.id) for one in large}
            present = set(client.collections()) if large else set()
            for store in large:
                if store.collection not in present:
                    continue
                numbers = client.numbers(store.collection, store.tenant, store.id)
                missing = np.setdiff1d(wanted[store.id], numbers, assume_unique=True)
                points = _StoredPoints(store.collection, numbers, store.changes, ready=not len(missing))
                self._points[store.id] = points

    def waits_for_qdrant(self, store_ids: Sequence[str]) -> bool:
        """Return whether a search of ``store_ids`` may send a request to the server."""
        return any(one in self._points for one in store_ids)

    def report(self) -> dict[str, Any] | None:
        """Return the state of the server for the doctor; None for a site without one."""
        if self.client is None:
            return None
        try:
            self.client.collections()
            unlocked = self.client.is_open()
        except VectorIndexError as error:
            return {"error": str(error)}
        points = [*self._points.values()]
        ready = sum(one.ready for one in points)
        return {"error": "", "open": unlocked, "ready": ready, "incomplete": len(points) - ready}

    def suspect(self) -> None:
        """Refuse searches until a pass succeeds, and begin it soon: a search failed. Any thread may call this."""
        self._failures += 1
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    def forget(self, store_id: str | None) -> None:
        """Remove the points of a store, or the collections of all stores; the next pass makes them again."""
        if self.client is None:
            return
        with self._pass:
            for name in self.client.collections():
                if not name.startswith(PREFIX):
                    continue
                if store_id is None:
                    self.client.drop(name)
                else:
                    self.client.delete_store(name, store_id)
            if store_id is None:
                self._points.clear()
            else:
                self._points.pop(store_id, None)

    def step(self, *, progress: Callable[[LargeStore, int], None] | None = None) -> None:
        """Make the points of all large stores equal to their passages, and remove all other points.

        ``progress`` gets a store and the number of its points after each batch.

        Raises :class:`VectorIndexError` if the server cannot respond, and :class:`StoreError`. A later pass
        continues.
        """
        client = self.client
        if client is None:
            return
        with self._pass:
            failures = self._failures
            with self._database.reading() as connection:
                stores = self._large(connection)
            self._points = {one.id: self._points[one.id] for one in stores if one.id in self._points}
            present = {name for name in client.collections() if name.startswith(PREFIX)}
            needed = {one.collection for one in stores}
            for name in sorted(present - needed):
                client.drop(name)
            for name in sorted(needed):
                its = {one.id: one for one in stores if one.collection == name}
                self._collection(client, name, its, absent=name not in present, progress=progress)
            self._metrics.vectors_waiting.set(0)
            self._passed = failures

    def _large(self, connection: Connection) -> list[LargeStore]:
        """Return the stores whose points must exist."""
        stores = VECTOR_STORES.c
        rows = connection.execute(select(stores.id, stores.tenant, stores.changes, stores.fingerprint)).all()
        self._counted = {row.id: self._counted[row.id] for row in rows if row.id in self._counted}
        found: list[LargeStore] = []
        for row in rows:
            fingerprint = read_fingerprint(row.fingerprint)
            if fingerprint is None:
                continue
            changes, passages = self._counted.get(row.id, (-1, 0))
            if changes != row.changes:
                of_store = PASSAGES.c.store_id == row.id, PASSAGES.c.tenant == row.tenant
                passages = connection.scalar(select(func.count()).select_from(PASSAGES).where(*of_store)) or 0
                self._counted[row.id] = (row.changes, passages)
            if passages > self.limit * PREPARED_SHARE:
                found.append(LargeStore(row.id, row.tenant, row.changes, passages, fingerprint))
        return found

    def _collection(
        self,
        client: QdrantClient,
        name: str,
        stores: dict[str, LargeStore],
        *,
        absent: bool,
        progress: Callable[[LargeStore, int], None] | None,
    ) -> None:
        """Make one collection equal to its stores."""
        expected = next(iter(stores.values())).fingerprint.dimensions
        if absent:
            client.create(name, expected)
        elif (found := client.dimensions(name)) != expected:
            for store_id in stores:
                self._points.pop(store_id, None)
            raise VectorIndexError(
                f"the collection {name} has vectors of {found} dimensions, the embedder's have {expected}; "
                "run `appliance memory reindex --index`",
                retry_after=LONGEST_PAUSE_S,
            )
        counts = client.counts(name)
        for store_id in counts.keys() - stores.keys():
            client.delete_store(name, store_id)
        for store in stores.values():
            self._apply(client, store, counts.get(store.id, 0), progress)

    def _apply(
        self,
        client: QdrantClient,
        store: LargeStore,
        count: int,
        progress: Callable[[LargeStore, int], None] | None,
    ) -> None:
        """Make the points of one store equal to its passages; ``count`` is their number on the server."""
        name, points = store.collection, self._points.get(store.id)
        if points is None or points.collection != name or len(points.numbers) != count:
            numbers = client.numbers(name, store.tenant, store.id)
            ready = points is not None and points.remain(name, numbers)
            points = self._points[store.id] = _StoredPoints(name, numbers, ready=ready)
            if len(points.numbers) != count:
                client.delete_store(name, store.id, except_tenant=store.tenant)
        if points.changes == store.changes:
            return
        with self._database.reading() as connection:
            state = state_of(connection, store.tenant, store.id)
            wanted = numbers_of(connection, store.tenant, store.id)
        if state is None or state.fingerprint != store.fingerprint:
            return
        stale = np.setdiff1d(points.numbers, wanted, assume_unique=True)
        if len(stale):
            client.delete(name, store.tenant, store.id, stale.tolist())
            points.numbers = np.setdiff1d(points.numbers, stale, assume_unique=True)
        missing = np.setdiff1d(wanted, points.numbers, assume_unique=True)
        size = max(1, BATCH_NUMBERS // store.fingerprint.dimensions)
        for start in range(0, len(missing), size):
            self._metrics.vectors_waiting.set(len(missing) - start)
            part = self._batch(store, missing[start : start + size].tolist())
            if part is None:
                return
            client.upsert(name, part)
            added = np.array([one.number for one in part], np.int64)
            points.numbers = np.union1d(points.numbers, added)
            if progress is not None:
                progress(store, len(points.numbers))
        points.changes, points.ready = state.changes, True

    def _batch(self, store: LargeStore, numbers: Sequence[int]) -> list[QdrantPoint] | None:
        """Return the points of those of ``numbers`` that still exist; None if the store has other vectors now."""
        with self._database.reading() as connection:
            state = state_of(connection, store.tenant, store.id)
            if state is None or state.fingerprint != store.fingerprint:
                return None
            found = vectors_of(connection, store.tenant, store.id, numbers)
        return [QdrantPoint(one.number, store.tenant, store.id, one.group_id, one.vector) for one in found]

    async def run(self) -> None:
        """Keep the points equal to the passages until cancelled; an error is logged once and retried."""
        self._loop = asyncio.get_running_loop()
        pause, reported, verified = POLL_S, "", -VERIFY_S
        seen: object = None
        while True:
            self._wake.clear()
            try:
                state = await asyncio.to_thread(self._state)
                if state != seen or time.monotonic() - verified >= VERIFY_S:
                    await asyncio.to_thread(self.step)
                    seen, verified = state, time.monotonic()
                pause = POLL_S
                if reported:
                    LOG.warning("the vector index responds again")
                    reported = ""
            except ApplianceError as error:
                self._metrics.vector_index_failures.inc()
                seen, pause = None, min(2 * pause, LONGEST_PAUSE_S)
                if str(error) != reported:
                    reported = str(error)
                    LOG.warning("the vector index is not current: %s", error)
            try:
                await asyncio.wait_for(self._wake.wait(), pause)
                seen = None
            except TimeoutError:
                continue

    def _state(self) -> tuple[tuple[str, int], ...]:
        """Return the stores and the counters of their changes."""
        stores = VECTOR_STORES.c
        with self._database.reading() as connection:
            rows = connection.execute(select(stores.id, stores.changes).order_by(stores.id))
            return tuple((row.id, row.changes) for row in rows)


@asynccontextmanager
async def qdrant_syncing(context: AssistantContext) -> AsyncIterator[None]:
    """Keep Qdrant's points current within the block; without Qdrant, do nothing."""
    sync = context.shared(QdrantSync)
    if sync.client is None:
        yield
        return
    try:
        async with in_background(sync.run(), "the vector index"):
            yield
    finally:
        sync.close()
