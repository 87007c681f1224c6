"""The vectors of one large store, searched by Qdrant, for the index that has its terms, dates and attributes.

Filters, validity and time windows are a mask of the index, not payload in Qdrant: the database alone decides what a
search may return. Few allowed passages are listed in the request. If many are allowed, the search requests more
points than it needs and drops the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from appliance.assistant.memory.qdrant import QdrantClient
from appliance.assistant.memory.qdrant_sync import QdrantSync, collection_of
from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.assistant.retrieval.index import AllowedKeys
from appliance.assistant.retrieval.vectors import Vectors
from appliance.assistant.store.database import Database
from appliance.assistant.store.passages import vectors_of
from appliance.errors import VectorIndexError

LISTED = 10_000
"""Allowed passages up to which a request lists them, which makes its search exact."""
MOST_REQUESTED = 10_000
"""Points of one response; a search that needs more lists the allowed passages, however many."""


class QdrantVectors:
    """The vectors of the store ``store_id`` of ``tenant``; a search holds the lock of its index."""

    def __init__(
        self, sync: QdrantSync, database: Database, tenant: str, store_id: str, fingerprint: EmbedderFingerprint
    ) -> None:
        self._sync, self._database = sync, database
        self._tenant, self._store_id = tenant, store_id
        self._dimensions = fingerprint.dimensions
        self._collection = collection_of(fingerprint)

    @property
    def dimensions(self) -> int:
        """Numbers of each vector."""
        return self._dimensions

    def search(self, query: Vectors, limit: int, allowed: AllowedKeys) -> dict[str, float]:
        """Return the allowed keys with the highest similarity, best first.

        Raises :class:`VectorIndexError` if Qdrant cannot respond or does not have the store's points yet.
        """
        client = self._sync.require(self._store_id, self._collection)
        try:
            return self._search(client, query, limit, allowed)
        except VectorIndexError:
            self._sync.suspect()
            raise

    def similarities(self, keys: Sequence[str], query: Vectors) -> dict[str, float]:
        """Return the similarity of each of ``keys`` from the vector in the database: Qdrant may lack new ones."""
        with self._database.reading() as connection:
            found = vectors_of(connection, self._tenant, self._store_id, [int(key) for key in keys])
        # After a change of the embedder, a vector has other dimensions for a moment.
        return {str(one.number): float(one.vector @ query) for one in found if len(one.vector) == len(query)}

    def _search(self, client: QdrantClient, query: Vectors, limit: int, allowed: AllowedKeys) -> dict[str, float]:
        if not len(allowed) or limit < 1:
            return {}
        if len(allowed) <= LISTED < allowed.total:
            return self._query(client, query, limit, within=allowed)
        requested = min(MOST_REQUESTED, math.ceil(limit * allowed.total / len(allowed)))
        while True:
            found = self._query(client, query, requested)
            hits = {key: similarity for key, similarity in found.items() if key in allowed}
            if len(hits) >= limit or len(found) < requested:
                return dict([*hits.items()][:limit])
            if requested == MOST_REQUESTED:
                return self._query(client, query, limit, within=allowed)
            requested = min(MOST_REQUESTED, 4 * requested)

    def _query(
        self, client: QdrantClient, query: Vectors, limit: int, within: AllowedKeys | None = None
    ) -> dict[str, float]:
        found = client.query(
            self._collection,
            tenant=self._tenant,
            store_id=self._store_id,
            vector=query,
            limit=limit,
            within=None if within is None else [int(key) for key in within],
        )
        hits = {str(number): similarity for number, similarity in found.items()}
        return hits if within is None else {key: value for key, value in hits.items() if key in within}
