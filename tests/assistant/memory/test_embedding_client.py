"""Embeddings through the acting socket: batches, order, billing, and every kind of unusable response."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any

import numpy as np
import pytest

from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.embedding_client import (
    LETTERS_AT_ONCE,
    REQUESTS_AT_ONCE,
    TEXTS_AT_ONCE,
    EmbeddingClient,
    read_vectors,
)
from appliance.errors import EngineFailedError, EngineReportedError, EngineUnavailableError
from tests.assistant.gateway_stand_in import EMBEDDER, ActingRequest, GatewayStandIn, embed
from tests.assistant.memory.conftest import ADA, OpenContexts
from tests.conftest import wait_until

PATH = "/v1/embeddings"


async def test_every_text_gets_its_own_vector_in_order(context: AssistantContext, gateway: GatewayStandIn) -> None:
    texts = [f"Passage {number} about {topic}" for number in range(30) for topic in ("tea", "rails", "rain")]
    found = await EmbeddingClient(context).documents(ADA, texts)
    assert np.allclose(np.stack(found), embed(texts), atol=1e-5)
    sizes = [len(request.body["input"]) for request in gateway.of(PATH)]
    assert sum(sizes) == len(texts)
    assert max(sizes) == TEXTS_AT_ONCE


async def test_long_texts_share_no_request(context: AssistantContext, gateway: GatewayStandIn) -> None:
    texts = ["long " * (LETTERS_AT_ONCE // 8), "long " * (LETTERS_AT_ONCE // 8), "x"]
    await EmbeddingClient(context).documents(ADA, texts)
    assert sorted(len(request.body["input"]) for request in gateway.of(PATH)) == [1, 2]


async def test_the_user_is_billed_and_documents_yield_to_others(
    context: AssistantContext, gateway: GatewayStandIn
) -> None:
    client = EmbeddingClient(context)
    await client.documents(ADA, ["a"])
    await client.query(ADA, "b")
    first, second = gateway.of(PATH)
    assert (first.headers["x-appliance-user"], first.headers["x-appliance-key"]) == (ADA.user, ADA.key_id)
    assert first.headers["x-appliance-background"] == "1"
    assert "x-appliance-background" not in second.headers
    assert first.body["model"] == EMBEDDER


async def test_documents_use_few_requests_at_once(context: AssistantContext, gateway: GatewayStandIn) -> None:
    gateway.held[PATH] = threading.Event()
    client = EmbeddingClient(context)
    task = asyncio.create_task(client.documents(ADA, ["x"] * (TEXTS_AT_ONCE * 6)))
    await asyncio.to_thread(wait_until, lambda: len(gateway.of(PATH)) >= REQUESTS_AT_ONCE, "two requests")
    # A query is not behind the documents.
    query = asyncio.create_task(client.query(ADA, "now"))
    await asyncio.to_thread(wait_until, lambda: len(gateway.of(PATH)) == REQUESTS_AT_ONCE + 1, "the query")
    gateway.held[PATH].set()
    await query
    assert len(await task) == TEXTS_AT_ONCE * 6


async def test_without_an_embedder_vectors_are_empty(contexts: OpenContexts, gateway: GatewayStandIn) -> None:
    client = EmbeddingClient(contexts(embedder=False))
    assert [vector.shape for vector in await client.documents(ADA, ["a", "b"])] == [(0,), (0,)]
    assert (await client.query(ADA, "a")).shape == (0,)
    assert client.fingerprint() is None
    assert gateway.requests == []


async def test_the_fingerprint_has_the_dimensions_that_were_seen(context: AssistantContext) -> None:
    client = EmbeddingClient(context)
    with pytest.raises(EngineUnavailableError):
        client.fingerprint()
    await client.documents(ADA, ["a"])
    found = client.fingerprint()
    assert found is not None
    assert found.dimensions == 512


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_an_embedder_that_is_down_is_503(
    context: AssistantContext, gateway: GatewayStandIn, status: int
) -> None:
    gateway.errors[PATH] = (status, "engine_failed")
    with pytest.raises(EngineUnavailableError) as raised:
        await EmbeddingClient(context).documents(ADA, ["a"] * 100)
    assert (raised.value.status, raised.value.code) == (503, "embedder_unavailable")
    assert raised.value.retry_after


async def test_an_absent_gateway_is_503(contexts: OpenContexts, gateway: GatewayStandIn) -> None:
    context = contexts()
    gateway.path.unlink()
    with pytest.raises(EngineUnavailableError):
        await EmbeddingClient(context).query(ADA, "a")


@pytest.mark.parametrize(("status", "code"), [(401, "invalid_api_key"), (429, "rate_limit_exceeded")])
async def test_a_rejection_of_the_caller_stays_as_it_is(
    context: AssistantContext, gateway: GatewayStandIn, status: int, code: str
) -> None:
    gateway.errors[PATH] = (status, code)
    with pytest.raises(EngineReportedError) as raised:
        await EmbeddingClient(context).documents(ADA, ["a"])
    assert (raised.value.status, raised.value.code) == (status, code)


def _rows(*vectors: object) -> dict[str, Any]:
    return {"data": [{"index": at, "embedding": vector} for at, vector in enumerate(vectors)]}


def test_base64_equals_numbers_and_places_count() -> None:
    vector = np.array([3.0, 4.0], "<f4")
    encoded = base64.b64encode(vector.tobytes()).decode()
    rows = [{"index": 1, "embedding": [0.0, 2.0]}, {"index": 0, "embedding": encoded}]
    first, second = read_vectors({"data": rows}, 2)
    assert first.tolist() == pytest.approx([0.6, 0.8])
    assert second.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "response",
    [
        {},
        _rows([1.0]),
        _rows([1.0], [1.0, 2.0]),
        _rows([1.0], [0.0]),
        _rows([1.0], [float("nan")]),
        _rows([1.0], []),
        _rows([1.0], "!"),
        _rows([1.0], None),
        _rows([1.0], [[1.0]]),
        _rows([1.0], ["a"]),
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 2, "embedding": [1.0]}]},
        {"data": ["x", "y"]},
    ],
)
def test_an_unusable_response_is_refused(response: dict[str, Any]) -> None:
    with pytest.raises(EngineFailedError):
        read_vectors(response, 2)


async def test_an_unusable_response_of_the_engine_is_503(
    context: AssistantContext, gateway: GatewayStandIn
) -> None:
    def zero(request: ActingRequest) -> Any:
        return _rows(*([0.0, 0.0] for _ in request.body["input"]))

    gateway.responses[PATH] = zero
    with pytest.raises(EngineUnavailableError):
        await EmbeddingClient(context).documents(ADA, ["a"])
