"""The memory of a role in stored responses: the context of chat completions, cited by annotations."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from openai import NotFoundError
from sqlalchemy import update

from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.embedding_client import EmbeddingClient
from appliance.assistant.store.passages import StoredPassage, replace_group
from appliance.assistant.store.schema import VECTOR_STORES
from appliance.assistant.store.stores import ensure_chats_store
from tests.assistant.gateway_stand_in import GatewayStandIn
from tests.assistant.memory.conftest import ADA, BOB, OpenContexts
from tests.assistant.memory.test_search_api import TEXTS, a_client, fill, served
from tests.conftest import wait_until

CHAT = "/v1/chat/completions"
TOKENIZE = "/tokenize"
FERRY = "User: When does the ferry to the island leave?\n\nAssistant: The ferry leaves at 7:40."


def says(text: str) -> bytes:
    """Return a stream of the engine with ``text``."""
    chunks: list[dict[str, Any]] = [
        {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    ]
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fake"}
    lines = [f"data: {json.dumps(head | {'choices': [one]})}\n\n" for one in chunks]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


@pytest.fixture
async def filled(context: AssistantContext, gateway: GatewayStandIn) -> AssistantContext:
    """A handbook, and a past chat; the engine cites passages 1 and 9."""
    await fill(context, "vs_1", TEXTS)
    client = context.shared(EmbeddingClient)
    (vector,) = await client.documents(ADA, [FERRY])

    def write() -> None:
        with context.database.writing() as connection:
            connection.execute(update(VECTOR_STORES).values(name="handbook"))
            store_id = ensure_chats_store(connection, "ada", time.time())
            one = StoredPassage("round", "The island", FERRY, vector, date=1.75e9)
            replace_group(connection, "ada", store_id, "conv_1", [one], fingerprint=client.fingerprint())

    await asyncio.to_thread(write)
    gateway.responses[CHAT] = lambda _request: says("It is so [1], not [9].")
    return context


def system_of(gateway: GatewayStandIn) -> str:
    messages = gateway.of(CHAT)[-1].body["messages"]
    assert [one["role"] for one in messages].count("system") <= 1
    return str(messages[0]["content"]) if messages[0]["role"] == "system" else ""


async def test_a_response_of_a_role_gets_its_memory_and_cites_it(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    with served(contexts()) as url, a_client(url) as client:
        found = client.responses.create(
            model="writer", instructions="Be brief.", input="When does the ferry to the island leave?"
        )
        stored = client.responses.retrieve(found.id)
        file = client.responses.create(model="writer", input="How hot is the water for green tea?")
    assert found.status == "completed"
    assert found.instructions == "Be brief.", "the memory is not part of the response's instructions"
    texts = [system for one in gateway.of(CHAT) if (system := str(one.body["messages"][0]["content"]))]
    assert texts[0].startswith("Be brief.")
    assert "The ferry leaves at 7:40." in texts[0]
    for one in (found, stored):
        (annotation,) = one.output[0].model_dump(warnings=False)["content"][0]["annotations"]
        expected = {"type": "conversation_citation", "conversation_id": "conv_1", "title": "The island"}
        assert annotation.items() >= expected.items()
        assert annotation["date"] == "2025-06-15"
    (annotation,) = file.output[0].model_dump(warnings=False)["content"][0]["annotations"]
    assert (annotation["type"], annotation["file_id"]) == ("file_citation", "file-tea")


async def test_nothing_is_added_without_a_fitting_passage_a_memory_or_a_store(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    with served(contexts()) as url, a_client(url) as ada, a_client(url, BOB) as bob:
        ferry = "When does the ferry to the island leave?"
        for client, model, text in (
            (ada, "writer", "Which satellites orbit the planet Neptune?"),
            (ada, "plain", ferry),
            (bob, "writer", ferry),
        ):
            found = client.responses.create(model=model, input=text)
            assert found.output[0].model_dump(warnings=False)["content"][0]["annotations"] == []
            assert system_of(gateway) == "", (model, text)


async def test_a_response_is_made_while_the_memory_is_down(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    gateway.errors["/v1/embeddings"] = (503, "engine_unavailable")
    with served(contexts()) as url, a_client(url) as client:
        found = client.responses.create(model="writer", input="How hot is the water for green tea?")
    assert found.status == "completed"
    assert system_of(gateway) == ""


async def test_a_conversation_with_the_role_has_the_memory_and_stores_none_of_it(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    with served(contexts()) as url, a_client(url) as client:
        made = client.conversations.create(metadata={"role": "writer"})
        client.responses.create(conversation=made.id, input="How hot is the water for green tea?")
        assert TEXTS["file-tea"] in system_of(gateway)
        items = client.conversations.items.list(made.id).model_dump_json()
    assert TEXTS["file-tea"] not in items


@pytest.mark.parametrize("model", ["writer", "plain"])
async def test_the_counted_prompt_is_that_of_the_turn(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn, model: str
) -> None:
    gateway.responses[TOKENIZE] = lambda request: {"count": len(str(request.body["messages"]))}
    asked: dict[str, Any] = {
        "model": model,
        "input": "How hot is the water for green tea?",
        "instructions": "Be brief.",
        "tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}],
    }
    with served(contexts()) as url, a_client(url) as client:
        counted = client.responses.input_tokens.count(**asked).input_tokens
        client.responses.create(**asked)
    sent, tokenized = gateway.of(CHAT)[-1].body, gateway.of(TOKENIZE)[-1].body
    assert (tokenized["messages"], tokenized["tools"]) == (sent["messages"], sent["tools"])
    assert counted == len(str(sent["messages"]))
    assert (TEXTS["file-tea"] in system_of(gateway)) == (model == "writer")


async def test_a_count_without_the_memory_or_of_a_prompt_that_is_too_long_is_a_number(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    gateway.responses[TOKENIZE] = lambda request: {"count": len(str(request.body["messages"]))}
    gateway.errors["/v1/embeddings"] = (503, "engine_unavailable")
    with served(contexts()) as url, a_client(url) as client:
        off = client.responses.input_tokens.count(model="writer", input="How hot is the water for green tea?")
        assert off.input_tokens == len(str(gateway.of(TOKENIZE)[-1].body["messages"]))
        long = client.responses.input_tokens.count(model="writer", input="tea " * 20_000)
        assert long.input_tokens > 80_000
        tools: Any = [{"type": "file_search", "vector_store_ids": ["vs_absent"]}]
        with pytest.raises(NotFoundError):
            client.responses.input_tokens.count(model="writer", input="tea", tools=tools)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_background_response_has_the_lower_weight_unless_a_client_reads_its_stream(
    contexts: OpenContexts, gateway: GatewayStandIn, streamed: bool
) -> None:
    gateway.responses[CHAT] = lambda _request: says("It is so.")
    with served(contexts()) as url, a_client(url) as client:
        made: Any = client.responses.create(model="plain", input="x", background=True, stream=streamed)
        if streamed:
            assert [*made][-1].type == "response.completed"
        else:
            wait_until(lambda: client.responses.retrieve(made.id).status == "completed", "the end")
    assert ("x-appliance-background" in gateway.of(CHAT)[-1].headers) == (not streamed)
