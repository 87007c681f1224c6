"""Large stores: Qdrant searches their vectors, the database decides, and every failure is 503."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from appliance import cli
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory import qdrant_vectors
from appliance.assistant.memory.qdrant import QdrantClient, QdrantPoint, read_key
from appliance.assistant.memory.qdrant_sync import QdrantSync
from appliance.assistant.memory.search import StoreSearch
from appliance.assistant.store.passages import remove_group, write_fingerprint
from appliance.assistant.store.schema import PASSAGES, VECTOR_STORES
from appliance.assistant.store.vector_stores import VectorStoreRepository
from appliance.errors import ConfigError, VectorIndexError
from tests.assistant.gateway_stand_in import GatewayStandIn, embed
from tests.assistant.memory.conftest import ADA, BOB, OpenContexts, memory_site
from tests.assistant.memory.test_reindex import OLD
from tests.assistant.memory.test_search_api import TEXTS, fill, groups, served
from tests.assistant.qdrant_stand_in import KEY, QdrantStandIn, qdrant_stand_in
from tests.conftest import wait_until

QUERIES = ("how hot is the water for tea?", "when is the rent due?", "rabies")


@pytest.fixture
def server() -> Iterator[QdrantStandIn]:
    with qdrant_stand_in() as state:
        yield state


def options(tmp_path: Path, server: QdrantStandIn, *, key: str = KEY, limit: int = 1) -> dict[str, Any]:
    file = tmp_path / "qdrant-key"
    file.write_text(f"QDRANT__SERVICE__API_KEY={key}\n")
    return {"qdrant_url": server.url, "qdrant_key_file": str(file), "exact_limit": limit}


@pytest.fixture
def with_qdrant(contexts: OpenContexts) -> Iterator[OpenContexts]:
    """Open contexts whose connections to the server are closed at the end."""
    yield contexts
    for context in contexts.open:
        client = context.shared(QdrantSync).client
        if client is not None:
            client.close()


@pytest.fixture
async def large(with_qdrant: OpenContexts, server: QdrantStandIn, tmp_path: Path) -> AssistantContext:
    """An assistant with a large store whose points are complete."""
    context = with_qdrant(**options(tmp_path, server))
    attributes = {"file-tea": {"year": 2025}, "file-rent": {"year": 2026}}
    await fill(context, "vs_1", TEXTS, attributes=attributes)
    await step(context)
    return context


async def step(context: AssistantContext) -> None:
    await asyncio.to_thread(context.shared(QdrantSync).step)


async def found(context: AssistantContext, query: str, **arguments: Any) -> list[str]:
    return groups(await context.shared(StoreSearch).search(ADA, ["vs_1"], [query], **arguments))


async def test_a_large_store_has_the_results_of_an_exact_search(
    large: AssistantContext, contexts: OpenContexts, server: QdrantStandIn
) -> None:
    exact = contexts()
    for query in QUERIES:
        expected = await exact.shared(StoreSearch).search(ADA, ["vs_1"], [query])
        outcome = await large.shared(StoreSearch).search(ADA, ["vs_1"], [query])
        assert groups(outcome) == groups(expected) != []
        for one, other in zip(outcome.passages, expected.passages, strict=True):
            assert (one.score, one.evidence) == pytest.approx((other.score, other.evidence), abs=1e-4)
    assert len(server.of("/points/query")) == len(QUERIES)
    assert server.only.indexes == {"tenant", "store", "group"}
    payload = {"tenant": "ada", "store": "vs_1", "group": "file-dog"}
    assert payload in [one.payload for one in server.only.points.values()]


async def test_a_small_store_never_reaches_the_server(
    with_qdrant: OpenContexts, server: QdrantStandIn, tmp_path: Path
) -> None:
    context = with_qdrant(**options(tmp_path, server, limit=100))
    await fill(context, "vs_1", TEXTS)
    await step(context)
    assert await found(context, "rabies") == ["file-dog"]
    assert server.collections == {}


@pytest.mark.parametrize("listed", [0, 1])
async def test_filters_and_validity_are_those_of_the_database(
    large: AssistantContext, server: QdrantStandIn, monkeypatch: pytest.MonkeyPatch, listed: int
) -> None:
    monkeypatch.setattr(qdrant_vectors, "LISTED", listed)
    year = {"type": "eq", "key": "year", "value": 2026}
    assert await found(large, "hot water for tea and the rent of the office", filters=year) == ["file-rent"]
    with large.database.writing() as connection:
        old = PASSAGES.c.group_id == "file-rent"
        connection.execute(update(PASSAGES).where(old).values(valid_until=1.0))
        connection.execute(update(VECTOR_STORES).values(changes=VECTOR_STORES.c.changes + 1))
    assert await found(large, "the rent of the office", filters=year) == []
    assert "file-rent" not in await found(large, "the rent of the office")
    listings = [one for body in server.of("/points/query") for one in body["filter"]["must"] if "has_id" in one]
    assert bool(listings) == bool(listed)


async def test_few_allowed_passages_behind_many_similar_ones_are_listed(
    large: AssistantContext, server: QdrantStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A response of one point, which the filter excludes, is not an empty result.
    monkeypatch.setattr(qdrant_vectors, "LISTED", 0)
    monkeypatch.setattr(qdrant_vectors, "MOST_REQUESTED", 1)
    year = {"type": "eq", "key": "year", "value": 2026}
    await found(large, "how hot is the water for tea?", filters=year)
    last = server.of("/points/query")[-1]
    assert [one for one in last["filter"]["must"] if "has_id" in one]


async def test_points_of_another_tenant_are_not_returned_and_are_removed(
    large: AssistantContext, server: QdrantStandIn
) -> None:
    (name,) = server.collections
    vector = embed(["rabies"])[0]
    with_key = QdrantClient(server.url, KEY)
    rows = [(900, "bob", "vs_1"), (901, "ada", "vs_9"), (902, "bob", "vs_9")]
    with_key.upsert(name, [QdrantPoint(*row, "file-x", vector) for row in rows])
    with_key.close()
    assert await found(large, "rabies") == ["file-dog"]
    for body in [*server.of("/points/query"), *server.of("/points/scroll")]:
        values = {one["key"]: one["match"]["value"] for one in body["filter"]["must"] if "key" in one}
        assert values == {"tenant": "ada", "store": "vs_1"}
    await step(large)
    assert server.only.points.keys().isdisjoint({900, 901, 902})
    assert len(server.only.points) == len(TEXTS)


async def test_a_point_that_the_database_does_not_have_is_not_returned(
    large: AssistantContext, server: QdrantStandIn
) -> None:
    (name,) = server.collections
    client = QdrantClient(server.url, KEY)
    client.upsert(name, [QdrantPoint(900, "ada", "vs_1", "file-x", embed(["rabies"])[0])])
    client.close()
    assert await found(large, "rabies") == ["file-dog"]
    await step(large)
    assert 900 not in server.only.points


def _refuses(status: int, body: bytes) -> Any:
    return lambda _method, path: (status, body) if path.endswith("/query") else None


FAILURES = (
    (500, b'{"status":{"error":"Service internal error"}}'),
    (503, b""),
    (400, b'{"status":{"error":"Wrong input: Vector dimension error: expected dim: 4, got 512"}}'),
    (404, b'{"status":{"error":"Not found: Collection does not exist!"}}'),
    (401, b"Must provide an API key"),
    (200, b"{}"),
    (200, b"not JSON"),
    (200, b'{"result":{"points":[]'),
    (200, b'{"result":[]}'),
    (200, b'{"result":{"points":[{"id":"a-uuid","score":0.5}]}}'),
    (200, b'{"result":{"points":[{"id":1,"score":null}]}}'),
    (200, b'{"result":{"points":[{"id":1,"score":17.0}]}}'),
)


async def test_a_failed_search_is_an_error_and_never_empty(large: AssistantContext, server: QdrantStandIn) -> None:
    for failure in FAILURES:
        server.fault = _refuses(*failure)
        with pytest.raises(VectorIndexError) as caught:
            await found(large, "rabies")
        assert caught.value.status == 503, failure
        assert KEY not in str(caught.value)
        await step(large)
    server.fault = None
    assert await found(large, "rabies") == ["file-dog"]


def test_a_silent_server_times_out(server: QdrantStandIn) -> None:
    server.held = threading.Event()
    client = QdrantClient(server.url, KEY, read_s=0.2)
    with pytest.raises(VectorIndexError, match="ReadTimeout"):
        client.collections()
    client.close()


async def test_after_a_failed_search_the_next_ones_fail_at_once(
    large: AssistantContext, server: QdrantStandIn
) -> None:
    server.fault = _refuses(500, b"")
    with pytest.raises(VectorIndexError, match="status 500"):
        await found(large, "rabies")
    server.fault = None
    sent = len(server.requests)
    for _ in range(2):
        with pytest.raises(VectorIndexError, match="not current again"):
            await found(large, "rabies")
    assert len(server.requests) == sent
    await step(large)
    assert await found(large, "rabies") == ["file-dog"]


async def test_a_pass_that_began_before_the_failure_does_not_end_it(
    large: AssistantContext, server: QdrantStandIn
) -> None:
    began, released = threading.Event(), threading.Event()

    def hold(_method: str, path: str) -> tuple[int, bytes] | None:
        if path.endswith("/query"):
            return 500, b""
        began.set()
        released.wait(60)
        return None

    server.fault = hold
    running = asyncio.create_task(step(large))
    try:
        assert await asyncio.to_thread(began.wait, 60)
        with pytest.raises(VectorIndexError, match="status 500"):
            await found(large, "rabies")
    finally:
        released.set()
        await running
    with pytest.raises(VectorIndexError, match="not current again"):
        await found(large, "rabies")
    await step(large)
    server.fault = None
    assert await found(large, "rabies") == ["file-dog"]


async def test_a_server_that_accepts_and_is_silent_leaves_the_other_endpoints_their_threads(
    contexts: OpenContexts, gateway: GatewayStandIn, server: QdrantStandIn, tmp_path: Path
) -> None:
    context = contexts(**options(tmp_path, server))
    await fill(context, "vs_1", TEXTS)
    # More searches than a loop has threads.
    searches = 4 + min(32, 4 + (os.cpu_count() or 1))
    pool = httpx.Limits(max_connections=None)
    hung = threading.Event()

    released = threading.Event()

    def hang(_method: str, path: str) -> None:
        if path.endswith("/query"):
            hung.set()
        released.wait(120)

    sync = context.shared(QdrantSync)
    assert sync.client is not None
    sync.client.close()
    sync.client = QdrantClient(server.url, KEY, read_s=100)
    with served(context) as url:
        async with httpx.AsyncClient(base_url=url, headers=ADA.headers(), timeout=120, limits=pool) as client:

            async def search(number: int) -> int:
                body = {"query": f"rabies {number}"}
                return (await client.post("/v1/vector_stores/vs_1/search", json=body)).status_code

            def complete() -> bool:
                body, address = {"query": "rabies"}, f"{url}/v1/vector_stores/vs_1/search"
                return httpx.post(address, headers=ADA.headers(), json=body, timeout=60).is_success

            await asyncio.to_thread(wait_until, complete, "the points", 60)
            server.fault = hang
            embedded = len(gateway.requests) + searches
            waiting = [asyncio.create_task(search(number)) for number in range(searches)]
            try:
                assert await asyncio.to_thread(hung.wait, 60)
                await asyncio.to_thread(
                    wait_until, lambda: len(gateway.requests) >= embedded, "the embedding of all queries", 60
                )
                for _ in range(5):
                    assert (await client.get("/v1/conversations", timeout=60)).status_code == 200
                assert not any(one.done() for one in waiting)
            finally:
                released.set()
                await asyncio.gather(*waiting)


async def test_an_incomplete_index_is_503_and_new_passages_are_found_by_words(
    with_qdrant: OpenContexts, server: QdrantStandIn, tmp_path: Path
) -> None:
    context = with_qdrant(**options(tmp_path, server))
    await fill(context, "vs_1", TEXTS)
    with pytest.raises(VectorIndexError, match="not complete"):
        await found(context, "rabies")
    await step(context)
    added = {"file-new": "The boiler room has the code 4711."}
    await fill(context, "vs_2", added)
    with context.database.writing() as connection:
        moved = {"store_id": "vs_1"}
        connection.execute(update(PASSAGES).where(PASSAGES.c.group_id == "file-new").values(moved))
        connection.execute(update(VECTOR_STORES).values(changes=VECTOR_STORES.c.changes + 1))
    assert (await found(context, "boiler room code 4711"))[0] == "file-new"
    assert len(server.only.points) == len(TEXTS)
    await step(context)
    assert len(server.only.points) == len(TEXTS) + 1
    assert (await found(context, "how do I enter the room with the heating?"))[0] == "file-new"


async def test_removed_passages_stores_and_embedders_leave_no_point(
    large: AssistantContext, server: QdrantStandIn
) -> None:
    await fill(large, "vs_2", TEXTS, caller=BOB)
    await step(large)
    assert len(server.only.of("vs_2")) == len(TEXTS)
    with large.database.writing() as connection:
        remove_group(connection, "ada", "file-dog")
    assert "file-dog" not in await found(large, "rabies dog")
    await step(large)
    assert "file-dog" not in {server.only.points[one].payload["group"] for one in server.only.of("vs_1")}
    VectorStoreRepository(large.database).delete("bob", "vs_2")
    await step(large)
    assert server.only.of("vs_2") == set()
    before = set(server.collections)
    with large.database.writing() as connection:
        changed = {"fingerprint": write_fingerprint(OLD), "changes": VECTOR_STORES.c.changes + 1}
        connection.execute(update(VECTOR_STORES).values(changed))
    await step(large)
    assert before.isdisjoint(server.collections)
    assert len(server.only.points) == 2


@pytest.mark.parametrize("loss", ["collection", "points"])
async def test_lost_points_are_made_again(large: AssistantContext, server: QdrantStandIn, loss: str) -> None:
    if loss == "collection":
        server.collections.clear()
        with pytest.raises(VectorIndexError):
            await found(large, "rabies")
    else:
        del server.only.points[max(server.only.points)]
    server.fault = lambda method, path: (500, b"") if (method, path[-7:]) == ("PUT", "/points") else None
    with pytest.raises(VectorIndexError):
        await step(large)
    with pytest.raises(VectorIndexError, match="not complete"):
        await found(large, "rabies")
    server.fault = None
    await step(large)
    assert len(server.only.points) == len(TEXTS)
    assert await found(large, "rabies") == ["file-dog"]


async def test_a_collection_of_other_dimensions_is_named_and_made_again_on_request(
    large: AssistantContext, server: QdrantStandIn
) -> None:
    server.only.size = 4
    with pytest.raises(VectorIndexError, match=r"4 dimensions.*memory reindex --index"):
        await step(large)
    with pytest.raises(VectorIndexError):
        await found(large, "rabies")
    await asyncio.to_thread(large.shared(QdrantSync).forget, None)
    await step(large)
    assert server.only.size == 512
    assert await found(large, "rabies") == ["file-dog"]


async def test_collections_of_other_programs_stay(large: AssistantContext, server: QdrantStandIn) -> None:
    client = QdrantClient(server.url, KEY)
    client.create("photos", 8)
    client.close()
    await step(large)
    await asyncio.to_thread(large.shared(QdrantSync).forget, None)
    assert set(server.collections) == {"photos"}


async def test_the_assistant_serves_through_an_outage_of_the_server(
    contexts: OpenContexts, gateway: GatewayStandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    state = QdrantStandIn()
    with qdrant_stand_in(state=state) as server:
        context = contexts(**options(tmp_path, server))
        port = int(server.url.rsplit(":", 1)[1])
        await fill(context, "vs_1", TEXTS)
    with served(context) as url, httpx.Client(base_url=url, headers=ADA.headers(), timeout=60) as client:

        def search(query: str) -> httpx.Response:
            return client.post("/v1/vector_stores/vs_1/search", json={"query": query})

        def logged() -> bool:
            return "Qdrant cannot be reached" in caplog.text

        await asyncio.to_thread(wait_until, logged, "the report of the outage", 60)
        response = await asyncio.to_thread(search, "rabies")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "vector_index_unavailable")
        assert float(response.headers["retry-after"]) > 0
        chat = {"model": "writer", "messages": [{"role": "user", "content": "rabies"}]}
        plain = await asyncio.to_thread(lambda: client.post("/v1/chat/completions", json=chat))
        assert plain.status_code == 200
        # Files are added meanwhile: the database needs no server.
        await fill(context, "vs_2", TEXTS, caller=BOB)
        with qdrant_stand_in(port, state):
            await asyncio.to_thread(
                wait_until, lambda: search("rabies").status_code == 200, "the end of the outage", 60
            )
            assert [one["file_id"] for one in search("rabies").json()["data"]] == ["file-dog"]
            assert len(state.only.of("vs_2")) == len(TEXTS)
    assert gateway.requests
    assert KEY not in caplog.text
    assert "rabies" not in caplog.text
    assert caplog.text.count("Qdrant cannot be reached (ConnectError)") <= 3


async def test_another_key_is_reported_once_and_never_logged(
    contexts: OpenContexts, server: QdrantStandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = contexts(**options(tmp_path, server, key="another-key"))
    await fill(context, "vs_1", TEXTS)
    with served(context):
        await asyncio.to_thread(wait_until, lambda: "refuses the key" in caplog.text, "the report", 60)
    assert "another-key" not in caplog.text
    assert server.collections == {}


def test_the_command_makes_the_points_again(
    gateway: GatewayStandIn, tmp_path: Path, migrated_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "site.json"

    def run(*words: str) -> tuple[int, str]:
        code = cli.main(["memory", "reindex", "--index", *words, "--config", str(config)])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    with qdrant_stand_in() as server:
        site = memory_site(tmp_path, acting_socket=str(gateway.path), **options(tmp_path, server))
        context = OpenContexts(gateway, tmp_path, migrated_folder, None)(site)

        async def prepare() -> None:
            await fill(context, "vs_1", TEXTS)
            await context.inference.close()
            await asyncio.to_thread(context.database.close)

        asyncio.run(prepare())
        config.write_text(site.model_dump_json(exclude_defaults=True))
        assert run() == (0, "the points of all large stores are complete\nvs_1: 3 of 3\n")
        server.only.points[max(server.only.points)].vector = [1.0] * 512
        assert run("vs_1")[0] == 0
        assert max(server.only.points[max(server.only.points)].vector) < 1
        assert run("vs_2") == (2, "error: store 'vs_2' does not exist; `appliance memory status` lists them\n")
    code, shown = run()
    assert (code, "Qdrant cannot be reached" in shown) == (1, True)
    config.write_text(memory_site(tmp_path).model_dump_json(exclude_defaults=True))
    assert run()[1].startswith("error: this site has no assistant.qdrant_url")


def test_a_key_file_has_the_key_with_or_without_its_variable(tmp_path: Path) -> None:
    file = tmp_path / "key"
    for content in ("k1\n", "QDRANT__SERVICE__API_KEY=k1"):
        file.write_text(content)
        assert read_key(file) == "k1"


@pytest.mark.parametrize(
    "content", [None, "", "QDRANT__SERVICE__API_KEY=\n", "\n", "two\nlines", "ключ"], ids=range(6)
)
def test_a_key_file_without_a_key_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match="qdrant_key_file"):
        read_key(file)
