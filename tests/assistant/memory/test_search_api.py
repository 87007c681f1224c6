"""The search over stores, driven by openai-python over a real socket."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import delete, insert, update

from appliance.assistant.app import make_app
from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.embedding_client import EmbeddingClient
from appliance.assistant.memory.search import StoreSearch
from appliance.assistant.memory.store_index import IndexCache
from appliance.assistant.retrieval.fusion import HybridWeights
from appliance.assistant.store.passages import (
    StoredPassage,
    count_change,
    remove_group,
    replace_group,
)
from appliance.assistant.store.schema import FILES, PASSAGES, VECTOR_STORE_FILES, VECTOR_STORES
from appliance.errors import ConflictError, EngineUnavailableError, InvalidRequestError, NotFoundError
from tests.assistant.gateway_stand_in import ActingRequest, GatewayStandIn, embed
from tests.assistant.memory.conftest import ADA, BOB, OpenContexts
from tests.conftest import http, wait_until

TEXTS = {
    "file-tea": "Зелёный чай заваривают водой при 80 градусах и держат две минуты.",
    "file-rent": "The rent of the office is paid on the fifth day of each month by bank transfer.",
    "file-dog": "Our dog Bella is vaccinated against rabies every spring at the clinic.",
}


@pytest.fixture
def database_url(migrated_url: str | None) -> str | None:
    """SQLite and PostgreSQL."""
    return migrated_url


async def fill(
    context: AssistantContext,
    store_id: str,
    texts: dict[str, str],
    *,
    caller: Caller = ADA,
    attributes: dict[str, dict[str, Any]] | None = None,
) -> str:
    """Make a store with one passage a file, as the ingestion does."""
    client = context.shared(EmbeddingClient)
    vectors = await client.documents(caller, list(texts.values()))
    now = time.time()

    def write() -> None:
        with context.database.writing() as connection:
            store: dict[str, Any] = {"id": store_id, "tenant": caller.user, "kind": "files", "created_at": now}
            connection.execute(insert(VECTOR_STORES).values(store | {"last_active_at": now}))
            for (group, text), vector in zip(texts.items(), vectors, strict=True):
                passage = StoredPassage("chunk", f"{group}.txt", text, vector)
                prints = client.fingerprint()
                assert replace_group(connection, caller.user, store_id, group, [passage], fingerprint=prints)
                if attributes and group in attributes:
                    file: dict[str, Any] = {
                        "id": group,
                        "tenant": caller.user,
                        "filename": group,
                        "purpose": "x",
                        "bytes": 1,
                    }
                    connection.execute(insert(FILES).values(file | {"digest": b"", "created_at": now}))
                    link: dict[str, Any] = {
                        "store_id": store_id,
                        "file_id": group,
                        "tenant": caller.user,
                        "key_id": "k",
                    }
                    link |= {"status": "completed", "chunking": "{}", "created_at": now}
                    link |= {"attributes": json.dumps(attributes[group])}
                    connection.execute(insert(VECTOR_STORE_FILES).values(link))

    await asyncio.to_thread(write)
    return store_id


@contextmanager
def served(context: AssistantContext) -> Iterator[str]:
    """Serve the application on a TCP port; the URL."""
    server = uvicorn.Server(uvicorn.Config(make_app(context), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the assistant", 60)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def a_client(url: str, caller: Caller = ADA) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="x", default_headers=caller.headers(), max_retries=0)


@pytest.fixture
async def filled(context: AssistantContext) -> AssistantContext:
    attributes = {"file-tea": {"year": 2025}, "file-rent": {"year": 2026, "draft": True}}
    await fill(context, "vs_1", TEXTS, attributes=attributes)
    return context


def groups(outcome: Any) -> list[str]:
    return [one.passage.group for one in outcome.passages]


async def test_openai_python_reads_the_results(filled: AssistantContext, contexts: OpenContexts) -> None:
    with served(contexts()) as url, a_client(url) as client:
        page = client.vector_stores.search("vs_1", query="how hot is the water for tea?", max_num_results=2)
        first = next(iter(page))
        assert (first.file_id, first.filename, first.attributes) == ("file-tea", "file-tea.txt", {"year": 2025})
        assert first.content[0].text == TEXTS["file-tea"]
        assert 0 < first.score <= 1
        assert page.object == "vector_store.search_results.page"
        both = client.vector_stores.search("vs_1", query=["when is the rent due?", "rabies"], rewrite_query=True)
        assert {one.file_id for one in both} >= {"file-rent", "file-dog"}
        assert both.model_extra is not None
        assert both.model_extra["search_query"] == ["when is the rent due?", "rabies"]
        drafts = client.vector_stores.search(
            "vs_1", query="rent", filters={"type": "eq", "key": "draft", "value": True}
        )
        assert [one.file_id for one in drafts] == ["file-rent"]
        text = http(f"{url}/metrics").body.decode()
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        found = {
            one.labels["outcome"]: one.value for one in samples if one.name == "appliance_assistant_searches_total"
        }
        assert found == {"found": 3.0}


async def test_bad_requests_name_their_field(filled: AssistantContext, contexts: OpenContexts) -> None:
    with served(contexts()) as url:
        cases: list[tuple[dict[str, Any], str]] = [
            ({}, "query"),
            ({"query": "x", "max_num_results": 0}, "max_num_results"),
            ({"query": "x", "max_num_results": 51}, "max_num_results"),
            ({"query": " "}, "query"),
            ({"query": []}, "query"),
            ({"query": 5}, "query"),
            ({"query": "x", "filters": {"type": "is", "key": "a", "value": 1}}, "filters"),
            ({"query": "x", "ranking_options": {"score_threshold": 1.5}}, "ranking_options.score_threshold"),
            ({"query": "x", "ranking_options": {"ranker": "best"}}, "ranking_options.ranker"),
            (
                {
                    "query": "x",
                    "ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}},
                },
                "ranking_options.hybrid_search",
            ),
        ]
        for body, param in cases:
            sent = json.dumps(body).encode()
            found = await asyncio.to_thread(post, f"{url}/v1/vector_stores/vs_1/search", sent)
            assert found[0] == 400, body
            assert str(found[1]["error"]["param"]).startswith(param), (body, found)


def post(url: str, body: bytes, caller: Caller = ADA) -> tuple[int, Any]:
    headers = {**caller.headers(), "content-type": "application/json"}
    response = httpx.post(url, content=body, headers=headers, timeout=60)
    return response.status_code, response.json()


async def test_a_foreign_store_and_an_unknown_one_are_the_same(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    await fill(filled, "vs_bob", {"file-x": "The secret of Bob is green tea."}, caller=BOB)
    before = len(gateway.requests)
    with served(contexts()) as url:
        body = json.dumps({"query": "tea"}).encode()
        foreign = await asyncio.to_thread(post, f"{url}/v1/vector_stores/vs_bob/search", body)
        unknown = await asyncio.to_thread(post, f"{url}/v1/vector_stores/vs_nil/search", body)
    assert foreign[0] == unknown[0] == 404
    assert json.dumps(foreign[1]).replace("vs_bob", "vs_nil") == json.dumps(unknown[1])
    assert len(gateway.requests) == before, "a refused search was billed"
    search = filled.shared(StoreSearch)
    with pytest.raises(NotFoundError):
        await search.search(ADA, ["vs_1", "vs_bob"], ["tea"])
    assert "file-x" in groups(await search.search(BOB, ["vs_bob"], ["tea"]))


async def test_an_unrelated_query_abstains(filled: AssistantContext) -> None:
    outcome = await filled.shared(StoreSearch).search(ADA, ["vs_1"], ["Which satellites orbit the planet Neptune?"])
    assert outcome.passages == ()
    assert outcome.abstention is not None


async def test_an_embedder_that_is_down_is_503_and_never_an_empty_page(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    gateway.errors["/v1/embeddings"] = (502, "engine_failed")
    with served(contexts()) as url:
        found = await asyncio.to_thread(post, f"{url}/v1/vector_stores/vs_1/search", b'{"query": "tea"}')
        assert (found[0], found[1]["error"]["code"]) == (503, "embedder_unavailable")
    search = filled.shared(StoreSearch)
    with pytest.raises(EngineUnavailableError):
        await search.search(ADA, ["vs_1"], ["tea"])
    # A search by words alone needs no embedder.
    words = HybridWeights(embedding_weight=0.0, text_weight=1.0)
    assert groups(await search.search(ADA, ["vs_1"], ["office rent"], weights=words)) == ["file-rent"]


async def test_another_embedder_is_refused_with_the_command_that_fixes_it(filled: AssistantContext) -> None:
    search = filled.shared(StoreSearch)
    assert groups(await search.search(ADA, ["vs_1"], ["tea"]))
    with filled.database.writing() as connection:
        text = (
            '{"model": "m", "revision": "r0", "pooling": "mean", "instruction": "", "dimensions": 512, "dtype": ""}'
        )
        connection.execute(update(VECTOR_STORES).values(fingerprint=text))
    with pytest.raises(ConflictError, match="appliance memory reindex vs_1"):
        await search.search(ADA, ["vs_1"], ["tea"])


async def test_the_index_follows_every_change_of_the_store(filled: AssistantContext) -> None:
    search, client = filled.shared(StoreSearch), filled.shared(EmbeddingClient)
    assert groups(await search.search(ADA, ["vs_1"], ["dog vaccination"]))[0] == "file-dog"
    text = "The garage key is in the blue jar."
    (vector,) = await client.documents(ADA, [text])

    def change() -> None:
        with filled.database.writing() as connection:
            remove_group(connection, "ada", "file-dog")
            one = StoredPassage("chunk", "new", text, vector)
            replace_group(connection, "ada", "vs_1", "file-new", [one], fingerprint=client.fingerprint())

    await asyncio.to_thread(change)
    assert "file-dog" not in groups(await search.search(ADA, ["vs_1"], ["dog vaccination"]))
    assert groups(await search.search(ADA, ["vs_1"], ["where is the garage key?"]))[0] == "file-new"
    with filled.database.writing() as connection:
        connection.execute(
            update(VECTOR_STORE_FILES)
            .where(VECTOR_STORE_FILES.c.file_id == "file-tea")
            .values(attributes='{"year": 1999}')
        )
        count_change(connection, "ada", "vs_1")
    old = {"type": "lt", "key": "year", "value": 2000}
    assert groups(await search.search(ADA, ["vs_1"], ["green tea"], filters=old)) == ["file-tea"]


async def test_a_passage_that_was_removed_behind_the_index_is_not_returned(filled: AssistantContext) -> None:
    search = filled.shared(StoreSearch)
    assert groups(await search.search(ADA, ["vs_1"], ["dog vaccination"]))
    with filled.database.writing() as connection:
        connection.execute(delete(PASSAGES).where(PASSAGES.c.group_id == "file-dog"))
    assert "file-dog" not in groups(await search.search(ADA, ["vs_1"], ["dog vaccination"]))


async def test_several_stores_are_one_ranking(filled: AssistantContext) -> None:
    await fill(filled, "vs_2", {"file-lease": "The lease of the flat ends in May.", "file-cat": "A cat purrs."})
    found = await filled.shared(StoreSearch).search(ADA, ["vs_1", "vs_2"], ["when is the rent of the office paid?"])
    assert groups(found)[0] == "file-rent"
    assert "file-cat" not in groups(found)
    assert [one.score for one in found.passages] == sorted((one.score for one in found.passages), reverse=True)


async def test_without_an_embedder_words_are_searched(contexts: OpenContexts, gateway: GatewayStandIn) -> None:
    context = contexts(embedder=False)
    await fill(context, "vs_1", TEXTS)
    found = await context.shared(StoreSearch).search(ADA, ["vs_1"], ["чаем зелёным"])
    assert (groups(found), found.ranking) == (["file-tea"], "words")
    assert gateway.requests == []


def _faulty(fault: dict[str, Any], _request: ActingRequest) -> dict[str, Any]:
    return fault


async def test_the_reranker_orders_and_its_failure_keeps_the_fused_order(
    contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    context = contexts(reranker=True)
    await fill(context, "vs_1", TEXTS)

    def prefers_dogs(request: ActingRequest) -> Any:
        assert request.headers["x-appliance-user"] == "ada"
        scores = [0.9 if "Bella" in text else 0.1 for text in request.body["documents"]]
        return {"results": [{"index": at, "relevance_score": score} for at, score in enumerate(scores)]}

    gateway.responses["/v1/rerank"] = prefers_dogs
    search = context.shared(StoreSearch)
    found = await search.search(ADA, ["vs_1"], ["rent of the office"])
    assert (groups(found), found.ranking) == (["file-dog"], "reranked")
    assert groups(await search.search(ADA, ["vs_1"], ["rent of the office"], rerank=False))[0] == "file-rent"
    faults: list[dict[str, Any]] = [{"results": []}, {"results": [{"index": 0, "relevance_score": 7}]}]
    for fault in faults:
        gateway.responses["/v1/rerank"] = partial(_faulty, fault)
        found = await search.search(ADA, ["vs_1"], ["rent of the office"])
        assert (groups(found)[0], found.ranking) == ("file-rent", "fused")
        assert found.degraded is not None
    gateway.errors["/v1/rerank"] = (503, "engine_unavailable")
    found = await search.search(ADA, ["vs_1"], ["rent of the office"])
    assert groups(found)[0] == "file-rent"


async def test_too_many_stores_are_refused(filled: AssistantContext) -> None:
    for store_ids in ([], [f"vs_{number}" for number in range(17)]):
        with pytest.raises(InvalidRequestError) as raised:
            await filled.shared(StoreSearch).search(ADA, store_ids, ["tea"])
        assert raised.value.param == "vector_store_ids"


async def test_indexes_that_were_not_used_give_way(context: AssistantContext) -> None:
    for number in range(3):
        await fill(context, f"vs_{number}", {f"file-{number}-{n}": f"Text {n} of {number}" for n in range(5)})
    cache = IndexCache(context.database, max_bytes=2 * 25_000)
    for number in (0, 1, 0, 2):
        with cache.open("ada", f"vs_{number}") as index:
            assert len(index.passages) == 5
    assert len(cache) == 2
    assert cache.bytes <= 2 * 25_000
    with pytest.raises(NotFoundError), cache.open("ada", "vs_nil"):
        pass
    assert len(cache) == 2


async def test_a_replaced_file_is_old_or_new_and_never_both(filled: AssistantContext) -> None:
    """A writer replaces a file of four passages while searches run."""
    search, client = filled.shared(StoreSearch), filled.shared(EmbeddingClient)
    versions = [[f"Edition {edition} of the rules, part {part}." for part in range(4)] for edition in range(6)]
    vectors = {text: vector for texts in versions for text, vector in zip(texts, embed(texts), strict=True)}
    await search.search(ADA, ["vs_1"], ["rules"])
    prints = client.fingerprint()

    def write() -> None:
        for texts in versions * 2:
            with filled.database.writing() as connection:
                rows = [StoredPassage("chunk", "rules", text, vectors[text]) for text in texts]
                replace_group(connection, "ada", "vs_1", "file-rules", rows, fingerprint=prints)

    writer = asyncio.create_task(asyncio.to_thread(write))
    seen = 0
    while not writer.done() or not seen:
        found = await search.search(ADA, ["vs_1"], ["edition of the rules, part"], limit=50)
        texts = [one.passage.text for one in found.passages if one.passage.group == "file-rules"]
        seen += bool(texts)
        assert len({text.partition(" of ")[0] for text in texts}) <= 1, texts
    await writer
