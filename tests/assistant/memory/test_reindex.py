"""Another embedder: refused until the store is indexed again; an interrupted run continues."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from sqlalchemy import select, update

from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.reindex import BATCH, StoreSummary, read_summaries, reindex
from appliance.assistant.memory.search import StoreSearch
from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.assistant.store.passages import passages_of, state_of, write_fingerprint
from appliance.assistant.store.schema import PASSAGES, VECTOR_STORE_FILES, VECTOR_STORES
from appliance.errors import ConflictError, EngineUnavailableError
from tests.assistant.gateway_stand_in import GatewayStandIn, embed
from tests.assistant.memory.conftest import ADA, OpenContexts
from tests.assistant.memory.test_search_api import fill

OLD = EmbedderFingerprint("older", "r0", "mean", "", 512, "uint8")
TEXTS = {f"file-{number}": f"Note {number} about the harbour" for number in range(BATCH + 6)}


@pytest.fixture
def database_url(migrated_url: str | None) -> str | None:
    """SQLite and PostgreSQL."""
    return migrated_url


def summary(context: AssistantContext) -> StoreSummary:
    with context.database.reading() as connection:
        return read_summaries(connection)[0]


@pytest.fixture
async def old(context: AssistantContext) -> AssistantContext:
    """A store whose vectors are of another embedder."""
    await fill(context, "vs_1", TEXTS, attributes={name: {"a": 1} for name in TEXTS})
    with context.database.writing() as connection:
        connection.execute(update(VECTOR_STORES).values(fingerprint=write_fingerprint(OLD)))
        connection.execute(update(PASSAGES).values(vector=np.eye(1, 512, dtype="<f4").tobytes()))
        connection.execute(update(VECTOR_STORE_FILES).values(key_id=ADA.key_id))
    return context


async def test_a_store_is_usable_again_after_it_was_indexed_again(
    old: AssistantContext, gateway: GatewayStandIn
) -> None:
    search = old.shared(StoreSearch)
    with pytest.raises(ConflictError):
        await search.search(ADA, ["vs_1"], ["harbour"])
    before = len(gateway.requests)
    gateway.errors["/v1/embeddings"] = (503, "engine_unavailable")
    with pytest.raises(EngineUnavailableError):
        await reindex(old, summary(old))
    del gateway.errors["/v1/embeddings"]
    seen: list[int] = []

    def fails_after_one(done: int, _total: int) -> None:
        seen.append(done)
        if len(seen) == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await reindex(old, summary(old), progress=fails_after_one)
    with old.database.reading() as connection:
        state = state_of(connection, "ada", "vs_1")
        assert state is not None
        assert state.fingerprint == OLD
    assert await reindex(old, summary(old)) == len(TEXTS) - BATCH
    with old.database.reading() as connection:
        found = {one.text: one.vector for one in passages_of(connection, "ada", "vs_1")}
        assert connection.execute(select(PASSAGES.c.number).where(PASSAGES.c.next_vector.is_not(None))).all() == []
    expected = embed(list(found))
    assert np.allclose(np.stack(list(found.values())), expected, atol=1e-5)
    outcome = await search.search(ADA, ["vs_1"], ["Note 3 about the harbour"])
    assert outcome.passages
    assert all(one.headers["x-appliance-key"] == ADA.key_id for one in gateway.requests[before:])


async def test_a_site_without_an_embedder_gets_a_store_of_words(
    old: AssistantContext, contexts: OpenContexts
) -> None:
    plain = contexts(embedder=False)
    assert await reindex(plain, summary(plain)) == 0
    assert summary(plain).fingerprint is None
    outcome = await plain.shared(StoreSearch).search(ADA, ["vs_1"], ["harbour"])
    assert outcome.passages
    # And back again.
    assert await reindex(old, summary(old)) == len(TEXTS)
    fingerprint = summary(old).fingerprint
    assert fingerprint is not None
    assert json.loads(fingerprint)["dimensions"] == 512
    assert await asyncio.to_thread(summary, old)
