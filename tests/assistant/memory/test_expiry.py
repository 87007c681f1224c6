"""The expiry of vector stores: a search is a use, and an expired store is refused, not searched."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import update

from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.search import ACTIVE_S, StoreSearch
from appliance.assistant.store.passages import count_passages, state_of
from appliance.assistant.store.responses import ResponseStore
from appliance.assistant.store.schema import VECTOR_STORES
from appliance.assistant.store.stores import memory_stores
from appliance.assistant.sweep import sweep
from appliance.errors import InvalidRequestError
from tests.assistant.gateway_stand_in import GatewayStandIn
from tests.assistant.memory.conftest import ADA, BOB
from tests.assistant.memory.test_search_api import TEXTS, fill

DAY_S = 86_400.0


async def used(context: AssistantContext, ago_s: float) -> None:
    """Make a store that expires a day after its last use, which was ``ago_s`` seconds ago."""
    await fill(context, "vs_1", TEXTS, attributes={"file-tea": {"year": 2025}})
    with context.database.writing() as connection:
        values = {"last_active_at": time.time() - ago_s, "expires_days": 1, "name": "notes"}
        connection.execute(update(VECTOR_STORES).values(values))


def last_use(context: AssistantContext) -> float:
    with context.database.reading() as connection:
        state = state_of(connection, "ada", "vs_1")
    assert state is not None
    return state.last_active_at


async def test_a_search_moves_the_expiry(context: AssistantContext) -> None:
    await used(context, DAY_S - 600)
    before = last_use(context)
    assert (await context.shared(StoreSearch).search(ADA, ["vs_1"], ["green tea"])).passages
    assert last_use(context) > before + DAY_S - 700
    await asyncio.to_thread(sweep, context, time.time() + DAY_S - ACTIVE_S)
    assert (await context.shared(StoreSearch).search(ADA, ["vs_1"], ["green tea"])).passages


async def test_an_expired_store_is_refused_with_a_code_and_stays_expired(
    context: AssistantContext, gateway: GatewayStandIn
) -> None:
    await used(context, DAY_S + 600)
    before, requests = last_use(context), len(gateway.requests)
    with pytest.raises(InvalidRequestError, match="vs_1") as caught:
        await context.shared(StoreSearch).search(ADA, ["vs_1"], ["green tea"])
    assert caught.value.code == "vector_store_expired"
    assert last_use(context) == before, "a refused search revived the store"
    assert len(gateway.requests) == requests, "a refused search was billed"
    with pytest.raises(InvalidRequestError) as caught:
        ResponseStore(context.database).read_history("ada", [], conversation=None, previous=None, stores=["vs_1"])
    assert caught.value.code == "vector_store_expired"


async def test_another_tenant_does_not_see_that_a_store_is_expired(context: AssistantContext) -> None:
    await used(context, DAY_S + 600)
    with pytest.raises(Exception, match="No vector_store found"):
        await context.shared(StoreSearch).search(BOB, ["vs_1"], ["green tea"])


async def test_a_role_omits_an_expired_store_and_the_sweep_empties_it(context: AssistantContext) -> None:
    await used(context, DAY_S - 600)
    with context.database.reading() as connection:
        assert memory_stores(connection, "ada", ["notes"]) == ["vs_1"]
    with context.database.writing() as connection:
        connection.execute(update(VECTOR_STORES).values(last_active_at=time.time() - DAY_S - 600))
    with context.database.reading() as connection:
        assert memory_stores(connection, "ada", ["notes"]) == []
        assert count_passages(connection, "ada", "vs_1") == len(TEXTS)
    await asyncio.to_thread(sweep, context, time.time())
    with context.database.reading() as connection:
        assert count_passages(connection, "ada", "vs_1") == 0
