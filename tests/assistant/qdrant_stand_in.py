"""A small real HTTP server in the place of Qdrant: exact searches, and bodies that are checked field by field.

The shapes are those of Qdrant's description of its API. As Qdrant does, the server refuses a missing key, a vector
of other dimensions, and a facet over a field without an index. It also refuses fields that the memory never uses.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

KEY = "a-key-of-the-test"


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _MatchValue(_Strict):
    value: str


class _FieldCondition(_Strict):
    key: Literal["tenant", "store", "group"]
    match: _MatchValue

    def accepts(self, _number: int, payload: dict[str, str]) -> bool:
        return payload.get(self.key) == self.match.value


class _HasId(_Strict):
    has_id: list[Annotated[int, Field(ge=0)]]

    def accepts(self, number: int, _payload: dict[str, str]) -> bool:
        return number in self.has_id


class _Filter(_Strict):
    must: list[_FieldCondition | _HasId]
    must_not: list[_FieldCondition | _HasId] = []

    def accepts(self, number: int, payload: dict[str, str]) -> bool:
        return all(one.accepts(number, payload) for one in self.must) and not any(
            one.accepts(number, payload) for one in self.must_not
        )

    def values(self, name: str) -> list[str]:
        return [one.match.value for one in self.must if isinstance(one, _FieldCondition) and one.key == name]


class _VectorParams(_Strict):
    size: Annotated[int, Field(ge=1)]
    distance: Literal["Cosine"]
    on_disk: bool


class _Hnsw(_Strict):
    m: Annotated[int, Field(ge=0)]
    payload_m: Annotated[int, Field(ge=0)]
    ef_construct: Annotated[int, Field(ge=4)]


class _CreateCollection(_Strict):
    vectors: _VectorParams
    hnsw_config: _Hnsw
    on_disk_payload: bool


class _KeywordIndex(_Strict):
    type: Literal["keyword"]
    is_tenant: bool


class _CreateIndex(_Strict):
    field_name: str
    field_schema: Literal["keyword"] | _KeywordIndex


class _PointStruct(_Strict):
    id: Annotated[int, Field(ge=0)]
    vector: list[float]
    payload: dict[str, str]


class _Upsert(_Strict):
    points: list[_PointStruct]


class _Delete(_Strict):
    filter: _Filter


class _SearchParams(_Strict):
    exact: bool
    hnsw_ef: Annotated[int, Field(ge=1)]


class _Query(_Strict):
    query: list[float]
    filter: _Filter
    limit: Annotated[int, Field(ge=1)]
    params: _SearchParams
    with_payload: bool
    with_vector: bool


class _Scroll(_Strict):
    filter: _Filter
    limit: Annotated[int, Field(ge=1)]
    offset: int | None = None
    with_payload: bool
    with_vector: bool


class _Facet(_Strict):
    key: str
    limit: Annotated[int, Field(ge=1)]
    exact: bool


class _RefusedError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class StoredPoint:
    """A point of the stand-in."""

    vector: list[float]
    payload: dict[str, str]


@dataclass
class StandInCollection:
    """A collection of the stand-in."""

    size: int
    indexes: set[str] = field(default_factory=set)
    points: dict[int, StoredPoint] = field(default_factory=dict)

    def of(self, store: str) -> set[int]:
        """Return the numbers of the points of ``store``."""
        return {number for number, point in self.points.items() if point.payload["store"] == store}


@dataclass
class QdrantStandIn:
    """The state of the server."""

    url: str = ""
    key: str = KEY
    collections: dict[str, StandInCollection] = field(default_factory=dict)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    """Method, path and body."""
    fault: Callable[[str, str], tuple[int, bytes] | None] | None = None
    """A status and a body for a method and a path, in the place of the response."""
    held: threading.Event | None = None
    """Every response waits for it."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def only(self) -> StandInCollection:
        """The collection, if there is one."""
        (found,) = self.collections.values()
        return found

    def of(self, end: str) -> list[Any]:
        """Return the bodies of the requests whose path ends so."""
        return [body for _, path, body in self.requests if path.endswith(end)]

    def respond(self, method: str, path: str, content: bytes) -> Any:
        """Return the result of a request."""
        parts = path.strip("/").split("/")
        body = json.loads(content) if content else None
        self.requests.append((method, path, body))
        if (method, parts) == ("GET", ["collections"]):
            return {"collections": [{"name": name} for name in self.collections]}
        name, rest = parts[1], "/".join(parts[2:])
        if (method, rest) == ("PUT", ""):
            made = _CreateCollection.model_validate_json(content)
            if name in self.collections:
                raise _RefusedError(409, f"Collection `{name}` already exists!")
            self.collections[name] = StandInCollection(made.vectors.size)
            return True
        if (method, rest) == ("DELETE", ""):
            return self.collections.pop(name, None) is not None
        if name not in self.collections:
            raise _RefusedError(404, f"Not found: Collection `{name}` doesn't exist!")
        known = {
            ("GET", ""): _config,
            ("PUT", "index"): _index,
            ("PUT", "points"): _upsert,
            ("POST", "points/delete"): _remove,
            ("POST", "points/query"): _search,
            ("POST", "points/scroll"): _page,
            ("POST", "facet"): _counts,
        }
        if (method, rest) not in known:
            raise _RefusedError(404, "")
        return known[method, rest](self.collections[name], content)


def _config(collection: StandInCollection, _content: bytes) -> Any:
    params = {"vectors": {"size": collection.size, "distance": "Cosine", "on_disk": True}}
    return {"status": "green", "config": {"params": params}}


def _index(collection: StandInCollection, content: bytes) -> Any:
    collection.indexes.add(_CreateIndex.model_validate_json(content).field_name)
    return {"status": "completed", "operation_id": 1}


def _upsert(collection: StandInCollection, content: bytes) -> Any:
    points = _Upsert.model_validate_json(content).points
    for one in points:
        _same_size(collection, one.vector)
    collection.points |= {one.id: StoredPoint(one.vector, one.payload) for one in points}
    return {"status": "completed", "operation_id": 2}


def _remove(collection: StandInCollection, content: bytes) -> Any:
    chosen = _Delete.model_validate_json(content).filter
    for number in [number for number, one in collection.points.items() if chosen.accepts(number, one.payload)]:
        del collection.points[number]
    return {"status": "completed", "operation_id": 3}


def _search(collection: StandInCollection, content: bytes) -> Any:
    body = _Query.model_validate_json(content)
    _of_one_store(body.filter)
    _same_size(collection, body.query)
    query = np.array(body.query)
    found = [
        (float(np.dot(query, point.vector) / np.linalg.norm(query) / np.linalg.norm(point.vector)), number)
        for number, point in collection.points.items()
        if body.filter.accepts(number, point.payload)
    ]
    found.sort(reverse=True)
    return {"points": [{"id": number, "version": 0, "score": score} for score, number in found[: body.limit]]}


def _page(collection: StandInCollection, content: bytes) -> Any:
    body = _Scroll.model_validate_json(content)
    _of_one_store(body.filter)
    numbers = sorted(n for n, one in collection.points.items() if body.filter.accepts(n, one.payload))
    numbers = [number for number in numbers if number >= (body.offset or 0)]
    following = numbers[body.limit] if len(numbers) > body.limit else None
    return {"points": [{"id": number} for number in numbers[: body.limit]], "next_page_offset": following}


def _counts(collection: StandInCollection, content: bytes) -> Any:
    body = _Facet.model_validate_json(content)
    if body.key not in collection.indexes:
        raise _RefusedError(400, f"Bad request: Index required but not found for {body.key}")
    counts = Counter(one.payload[body.key] for one in collection.points.values())
    return {"hits": [{"value": value, "count": count} for value, count in counts.most_common(body.limit)]}


def _of_one_store(chosen: _Filter) -> None:
    """Require one tenant and one store, which Qdrant does not: no read of the memory may span tenants."""
    if len(chosen.values("tenant")) != 1 or len(chosen.values("store")) != 1:
        raise _RefusedError(400, "the filter does not have one tenant and one store")


def _same_size(collection: StandInCollection, vector: list[float]) -> None:
    if len(vector) != collection.size:
        reason = f"Vector dimension error: expected dim: {collection.size}, got {len(vector)}"
        raise _RefusedError(400, reason)


class _QdrantServer(ThreadingHTTPServer):
    daemon_threads = True
    state: QdrantStandIn


class _QdrantHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _QdrantServer

    def _serve(self) -> None:
        state = self.server.state
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = urlsplit(self.path).path
        if state.held is not None:
            state.held.wait(60)
        injected = state.fault(self.command, path) if state.fault is not None else None
        if injected is not None:
            self._send(*injected)
            return
        if self.headers.get("api-key") != state.key:
            self._send(401, b"Must provide an API key or an Authorization bearer token")
            return
        try:
            with state.lock:
                found = state.respond(self.command, path, content)
        except _RefusedError as error:
            self._send(error.status, json.dumps({"status": {"error": str(error)}, "time": 0.0}).encode())
        except ValidationError as error:
            reason = f"Format error in JSON body: {error.errors()[0]['msg']} {error.errors()[0]['loc']}"
            self._send(400, json.dumps({"status": {"error": reason}, "time": 0.0}).encode())
        else:
            self._send(200, json.dumps({"result": found, "status": "ok", "time": 0.0}).encode())

    do_GET = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - the names of the base class

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        pass


@contextmanager
def qdrant_stand_in(port: int = 0, state: QdrantStandIn | None = None) -> Iterator[QdrantStandIn]:
    """Serve on loopback within the block; ``state`` keeps the points over a restart."""
    state = state or QdrantStandIn()
    server = _QdrantServer(("127.0.0.1", port), _QdrantHandler)
    server.state = state
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        if state.held is not None:
            state.held.set()
        server.shutdown()
        server.server_close()
        thread.join()
