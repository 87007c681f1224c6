"""Qdrant's REST API, as far as the memory uses it: a collection an embedder, points of many stores in it.

A point is a passage: its number is the id, its payload names tenant, store and group. Every request for points has
both the tenant and the store in its filter. The database remains the truth, so no point has a text.

The requests have the shapes of Qdrant's own description of its API, of which each part exists since Qdrant 1.12.
Methods wait for the server: call them from a thread. Each raises :class:`VectorIndexError` if the server cannot be
reached, refuses the key or the request, or returns another shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from appliance.errors import ConfigError, VectorIndexError
from appliance.system import files

VARIABLE = "QDRANT__SERVICE__API_KEY="
"""The variable from which the server reads the key: one file serves both, as systemd's EnvironmentFile."""
CONNECT_S = 2.0
READ_S = 10.0
WRITE_S = 120.0
"""Longest time of a request that changes points: the server responds after it has stored them."""
RETRY_S = 15.0
NUMBERS_AT_ONCE = 10_000
"""Ids of one request."""
BATCH_NUMBERS = 2**19
"""Numbers in the vectors of one request, about 10 MB of JSON; Qdrant accepts 32 MB."""
GRAPH_EDGES = 16
SEARCH_BREADTH = 128


@dataclass(frozen=True, slots=True)
class QdrantPoint:
    """A passage as Qdrant has it."""

    number: int
    tenant: str
    store_id: str
    group_id: str
    vector: NDArray[np.float32]


def read_key(path: Path) -> str:
    """Return the API key in the file ``path``: its line, without :data:`VARIABLE` at the beginning.

    Raises :class:`ConfigError` if the file is absent, empty or not one line of ASCII, and :class:`StoreError` if it
    cannot be read.
    """
    content = files.read(path)
    key = "" if content is None else content.decode("utf-8", "replace").strip().removeprefix(VARIABLE)
    if not key or not key.isprintable() or not key.isascii():
        raise ConfigError(f"{path} (assistant.qdrant_key_file) has no line with the API key; write it there")
    return key


class QdrantClient:
    """A pooled client of one server, which is silent for at most ``read_s`` seconds in a search."""

    def __init__(self, url: str, key: str, *, read_s: float = READ_S) -> None:
        self._read_s = read_s
        self._client = httpx.Client(
            base_url=url,
            headers={"api-key": key},
            timeout=httpx.Timeout(read_s, connect=CONNECT_S),
            trust_env=False,
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def is_open(self) -> bool:
        """Return whether the server serves a request without a key."""
        try:
            with httpx.Client(base_url=self._client.base_url, timeout=self._read_s, trust_env=False) as other:
                return other.get("/collections").status_code == 200
        except httpx.HTTPError as error:
            raise _unavailable(f"Qdrant cannot be reached ({type(error).__name__})") from error

    def collections(self) -> list[str]:
        """Return the names of all collections."""
        return _texts(self._get("GET", "/collections"), "collections", "name")

    def dimensions(self, name: str) -> int | None:
        """Return the dimensions of the collection ``name``; None if it is absent."""
        found = self._get("GET", f"/collections/{name}", absent=None)
        if found is None:
            return None
        try:
            size = found["config"]["params"]["vectors"]["size"]
        except (KeyError, TypeError):
            size = None
        if not isinstance(size, int):
            raise VectorIndexError("Qdrant returned a collection without the size of its vectors")
        return size

    def create(self, name: str, dimensions: int) -> None:
        """Make the collection ``name`` with its indexes of the payload.

        Vectors are on disk. A graph is built for each store and none over all of them, as Qdrant recommends for
        many tenants.
        """
        body = {
            "vectors": {"size": dimensions, "distance": "Cosine", "on_disk": True},
            "hnsw_config": {"m": 0, "payload_m": GRAPH_EDGES, "ef_construct": 100},
            "on_disk_payload": True,
        }
        self._get("PUT", f"/collections/{name}", body, timeout=WRITE_S)
        for field in ("store", "tenant", "group"):
            schema = {"type": "keyword", "is_tenant": True} if field == "store" else "keyword"
            index = {"field_name": field, "field_schema": schema}
            self._get("PUT", f"/collections/{name}/index?wait=true", index, timeout=WRITE_S)

    def drop(self, name: str) -> None:
        """Remove the collection ``name``; an absent one is accepted."""
        self._get("DELETE", f"/collections/{name}", absent={}, timeout=WRITE_S)

    def upsert(self, name: str, points: Sequence[QdrantPoint]) -> None:
        """Store ``points``, which are within :data:`BATCH_NUMBERS`."""
        rows = [
            {
                "id": one.number,
                "vector": one.vector.tolist(),
                "payload": {"tenant": one.tenant, "store": one.store_id, "group": one.group_id},
            }
            for one in points
        ]
        self._get("PUT", f"/collections/{name}/points?wait=true", {"points": rows}, timeout=WRITE_S)

    def delete(self, name: str, tenant: str, store_id: str, numbers: Sequence[int]) -> None:
        """Remove the points with ``numbers`` from one store."""
        for start in range(0, len(numbers), NUMBERS_AT_ONCE):
            chosen = {"has_id": [*numbers[start : start + NUMBERS_AT_ONCE]]}
            self._delete(name, {"must": [*_of_store(tenant, store_id), chosen]})

    def delete_store(self, name: str, store_id: str, *, except_tenant: str | None = None) -> None:
        """Remove the points of a store, or those that another tenant than ``except_tenant`` has in it."""
        chosen: dict[str, Any] = {"must": [_match("store", store_id)]}
        if except_tenant is not None:
            chosen["must_not"] = [_match("tenant", except_tenant)]
        self._delete(name, chosen)

    def counts(self, name: str) -> dict[str, int]:
        """Return the number of points of each store in the collection, exact."""
        body = {"key": "store", "limit": NUMBERS_AT_ONCE, "exact": True}
        found = self._get("POST", f"/collections/{name}/facet", body, timeout=WRITE_S)
        counts: dict[str, int] = {}
        for hit in _rows(found, "hits"):
            value, count = hit.get("value"), hit.get("count")
            if not isinstance(value, str) or not isinstance(count, int):
                raise VectorIndexError("Qdrant returned counts of another shape")
            counts[value] = count
        return counts

    def numbers(self, name: str, tenant: str, store_id: str) -> NDArray[np.int64]:
        """Return the numbers of all points of a store, in their order."""
        parts: list[NDArray[np.int64]] = []
        offset: Any = None
        while True:
            body: dict[str, Any] = {
                "filter": {"must": _of_store(tenant, store_id)},
                "limit": NUMBERS_AT_ONCE,
                "with_payload": False,
                "with_vector": False,
            }
            if offset is not None:
                body["offset"] = offset
            found = self._get("POST", f"/collections/{name}/points/scroll", body, timeout=WRITE_S)
            numbers = [_number(row.get("id")) for row in _rows(found, "points")]
            parts.append(np.array(numbers, np.int64))
            offset = found.get("next_page_offset")
            if offset is None or not numbers:
                return np.unique(np.concatenate(parts))

    def query(
        self,
        name: str,
        *,
        tenant: str,
        store_id: str,
        vector: NDArray[np.float32],
        limit: int,
        within: Sequence[int] | None = None,
    ) -> dict[int, float]:
        """Return the numbers of the most similar points of a store and their similarity, best first.

        Args:
            name: The collection.
            tenant: The owner of the store.
            store_id: The store.
            vector: Of length 1, shape (dimensions,).
            limit: Most points.
            within: The only numbers that may be returned, which makes the search exact; None for all.
        """
        must = _of_store(tenant, store_id)
        if within is not None:
            must.append({"has_id": [*within]})
        body = {
            "query": vector.tolist(),
            "filter": {"must": must},
            "limit": limit,
            "params": {"exact": within is not None, "hnsw_ef": max(SEARCH_BREADTH, limit)},
            "with_payload": False,
            "with_vector": False,
        }
        found = self._get("POST", f"/collections/{name}/points/query", body)
        hits: dict[int, float] = {}
        for row in _rows(found, "points"):
            score = row.get("score")
            if not isinstance(score, int | float) or not -1.01 <= score <= 1.01:
                raise VectorIndexError("Qdrant returned a point without a similarity")
            hits[_number(row.get("id"))] = float(score)
        return hits

    def _delete(self, name: str, chosen: Mapping[str, Any]) -> None:
        self._get("POST", f"/collections/{name}/points/delete?wait=true", {"filter": chosen}, timeout=WRITE_S)

    def _get(
        self, method: str, path: str, body: object = None, *, timeout: float | None = None, absent: Any = ...
    ) -> Any:
        """Return the ``result`` of a request; ``absent`` if the server does not have its object, if given."""
        content = None if body is None else msgspec.json.encode(body)
        try:
            response = self._client.request(
                method,
                path,
                content=content,
                headers={"content-type": "application/json"},
                timeout=httpx.Timeout(timeout or self._read_s, connect=CONNECT_S),
            )
        except httpx.HTTPError as error:
            raise _unavailable(f"Qdrant cannot be reached ({type(error).__name__})") from error
        if response.status_code == 404 and absent is not ...:
            return absent
        if response.status_code in (401, 403):
            raise _unavailable("Qdrant refuses the key of assistant.qdrant_key_file")
        if response.status_code >= 300:
            raise _unavailable(f"Qdrant responded with status {response.status_code}{_reason(response)}")
        try:
            return msgspec.json.decode(response.content)["result"]
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise _unavailable("Qdrant's response is not its JSON") from error


def _unavailable(message: str) -> VectorIndexError:
    return VectorIndexError(message, retry_after=RETRY_S)


def _reason(response: httpx.Response) -> str:
    """Return the reason that Qdrant's response has; it never contains a text of the memory."""
    try:
        found = msgspec.json.decode(response.content)["status"]["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""
    return f": {str(found)[:300]}"


def _match(field: str, value: str) -> dict[str, Any]:
    return {"key": field, "match": {"value": value}}


def _of_store(tenant: str, store_id: str) -> list[dict[str, Any]]:
    return [_match("tenant", tenant), _match("store", store_id)]


def _rows(found: Any, field: str) -> list[dict[str, Any]]:
    rows = found.get(field) if isinstance(found, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _unavailable(f"Qdrant returned no list of {field}")
    return rows


def _texts(found: Any, field: str, name: str) -> list[str]:
    return [str(row.get(name)) for row in _rows(found, field)]


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise _unavailable("Qdrant returned a point that is not of this memory")
    return value
