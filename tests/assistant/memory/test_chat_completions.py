"""Plain chat completions with a memory: passages in the request, citations in the response, and failures."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.chat_context import StreamAnnotator, chat_queries, with_context
from appliance.assistant.memory.embedding_client import EmbeddingClient
from appliance.assistant.store.passages import StoredPassage, replace_group
from appliance.assistant.store.schema import VECTOR_STORES
from appliance.assistant.store.stores import ensure_chats_store, memory_stores
from tests.assistant.gateway_stand_in import GatewayStandIn
from tests.assistant.memory.conftest import ADA, BOB, OpenContexts
from tests.assistant.memory.test_search_api import TEXTS, a_client, fill, served
from tests.conftest import wait_until

CHAT = "/v1/chat/completions"


@pytest.fixture
async def filled(context: AssistantContext) -> AssistantContext:
    """A handbook, and a past chat about the harbour."""
    await fill(context, "vs_1", TEXTS)
    client = context.shared(EmbeddingClient)
    text = "User: When does the ferry to the island leave?\n\nAssistant: The ferry leaves at 7:40."
    (vector,) = await client.documents(ADA, [text])

    def write() -> None:
        with context.database.writing() as connection:
            connection.execute(update(VECTOR_STORES).values(name="handbook"))
            store_id = ensure_chats_store(connection, "ada", time.time())
            assert ensure_chats_store(connection, "ada", time.time()) == store_id
            date = datetime(2026, 3, 4, tzinfo=UTC).timestamp()
            one = StoredPassage("round", "The island", text, vector, date=date)
            replace_group(connection, "ada", store_id, "conv_1", [one], fingerprint=client.fingerprint())

    await asyncio.to_thread(write)
    return context


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    one = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fake", "choices": [choice], **more}
    return b"data: " + json.dumps(one, separators=(",", ":")).encode() + b"\n\n"


STREAM = chunk({"role": "assistant", "content": "At "}) + chunk({"content": "80 [1]."}) + chunk({}, "stop")
DONE = b"data: [DONE]\n\n"


async def test_a_chat_gets_passages_and_its_response_cites_them(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with served(contexts()) as url, a_client(url) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="writer",
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "ferry to the island?"},
            ],
            tools=tools,
            n=1,
            logprobs=True,
            seed=7,
            extra_body={"top_k": 3},
        )
        message = raw.parse().choices[0].message
    assert raw.headers["x-memory"] == "used"
    (sent,) = gateway.of(CHAT)
    assert sent.headers["x-appliance-user"] == "ada"
    assert (sent.body["model"], sent.body["seed"], sent.body["top_k"]) == ("writer", 7, 3)
    assert (sent.body["tools"], sent.body["logprobs"], sent.body["n"]) == (tools, True, 1)
    roles = [one["role"] for one in sent.body["messages"]]
    assert roles == ["system", "system", "user"]
    block = sent.body["messages"][1]["content"]
    assert "The ferry leaves at 7:40." in block
    assert 'date="2026-03-04"' in block
    assert f"Today is {datetime.now(UTC):%Y}" in block
    dumped = message.model_dump()
    assert message.content == "Hello."
    assert dumped["annotations"][0] | {"url_citation": None} == {
        "url_citation": None,
        "type": "conversation_citation",
        "conversation_id": "conv_1",
        "title": "The island",
        "date": "2026-03-04",
        "index": 0,
        "number": 1,
    }


async def test_a_stream_has_its_annotations_before_its_end(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    gateway.responses[CHAT] = lambda request: STREAM + DONE
    with served(contexts()) as url, a_client(url) as client:
        stream = client.chat.completions.create(
            model="writer", messages=[{"role": "user", "content": "How hot is the water for tea?"}], stream=True
        )
        chunks = [one.model_dump() for one in stream]
    deltas = [one["choices"][0]["delta"] for one in chunks]
    assert "".join(one.get("content") or "" for one in deltas) == "At 80 [1]."
    assert [one["choices"][0]["finish_reason"] for one in chunks] == [None, None, None, "stop"]
    cited = deltas[2]["annotations"][0]
    assert (cited["type"], cited["file_id"], cited["filename"]) == ("file_citation", "file-tea", "file-tea.txt")


async def post(url: str, body: Any, caller: Any = ADA) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {**caller.headers(), "content-type": "application/json"}
        return await client.post(f"{url}{CHAT}", content=content, headers=headers)


async def test_an_unrelated_chat_is_unchanged(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    with served(contexts()) as url:
        for body in (
            {"model": "writer", "messages": [user("Which satellites orbit the planet Neptune?")]},
            {"model": "plain", "messages": [user("How hot is the water for tea?")]},
            {"model": "writer", "messages": [{"role": "assistant", "content": "How hot is the water for tea?"}]},
            {"model": "writer", "messages": "none"},
        ):
            found = await post(url, body)
            assert (found.status_code, found.headers["x-memory"]) == (200, "none"), body
            assert gateway.of(CHAT)[-1].body == body
            assert "annotations" not in found.text


async def test_another_tenant_gets_nothing_of_this_one(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    body = {"model": "writer", "messages": [user("When does the ferry to the island leave?")]}
    with served(contexts()) as url:
        found = await post(url, body, BOB)
    assert found.headers["x-memory"] == "none"
    assert gateway.of(CHAT)[-1].body == body


async def test_a_chat_has_its_response_while_the_embedder_is_down(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    gateway.errors["/v1/embeddings"] = (503, "engine_unavailable")
    body = {"model": "writer", "messages": [user("How hot is the water for tea?")]}
    with served(contexts()) as url:
        found = await post(url, body)
    assert (found.status_code, found.headers["x-memory"]) == (200, "off")
    assert found.json()["choices"][0]["message"]["content"] == "Hello."


async def test_a_context_that_does_not_fit_is_omitted(
    filled: AssistantContext, contexts: OpenContexts, gateway: GatewayStandIn
) -> None:
    gateway.errors[CHAT] = (400, "context_length_exceeded")
    body = {"model": "writer", "messages": [user("How hot is the water for tea?")]}
    with served(contexts()) as url:
        found = await post(url, body)
        assert found.status_code == 400
        assert [len(one.body["messages"]) for one in gateway.of(CHAT)] == [2, 1]
        gateway.errors[CHAT] = (429, "rate_limit_exceeded")
        found = await post(url, body)
        assert (found.status_code, found.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert len(gateway.of(CHAT)) == 3, "a rejection that is not of the context was repeated"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"temperature": NaN}', b'{"a": "\\ud800"}', b"\xff", b"[" * 100_000]
)
async def test_a_body_that_is_not_a_json_object_is_400(contexts: OpenContexts, body: bytes) -> None:
    with served(contexts()) as url:
        found = await post(url, body)
    assert (found.status_code, found.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_the_engine_stops_when_the_client_leaves(contexts: OpenContexts, gateway: GatewayStandIn) -> None:
    """The stand-in holds its response; the connection ends although nothing was sent."""
    gateway.held[CHAT] = threading.Event()
    context = contexts()
    with served(context) as url:
        body = {"model": "plain", "messages": [user("x")]}
        task = asyncio.create_task(post(url, body))
        await asyncio.to_thread(wait_until, lambda: len(gateway.of(CHAT)) == 1, "the request")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(wait_until, lambda: gateway.disconnected > 0, "the end of the connection")


def test_the_query_is_the_last_message_of_the_user() -> None:
    assert chat_queries([user("one"), {"role": "assistant", "content": "x"}, user("and when?")]) == [
        "and when?",
        "one\nand when?",
    ]
    assert chat_queries([user("a"), {"role": "tool", "content": "b"}]) == []
    assert chat_queries([{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "t"}]}]) == [
        "t"
    ]
    assert chat_queries([user(" ")]) == []
    assert chat_queries(["x", None]) == []
    messages = [{"role": "developer", "content": "d"}, {"role": "system", "content": "s"}, user("q")]
    assert [one["content"] for one in with_context(messages, "C")] == ["d", "s", "C", "q"]
    assert with_context([user("q")], "C")[0]["role"] == "system"


async def test_stores_are_named_by_name_id_or_chats(filled: AssistantContext) -> None:
    with filled.database.reading() as connection:
        (chats,) = memory_stores(connection, "ada", ["chats"])
        assert memory_stores(connection, "ada", ["handbook", "chats"]) == ["vs_1", chats]
        assert memory_stores(connection, "ada", ["vs_1", "handbook", "nil"]) == ["vs_1"]
        assert memory_stores(connection, "ada", [chats]) == []
        assert memory_stores(connection, "bob", ["chats", "handbook", "vs_1"]) == []


@given(st.lists(st.integers(1, len(STREAM + DONE) - 1), max_size=20))
def test_any_cut_of_the_stream_gives_the_same_bytes(cuts: list[int]) -> None:
    cited = [{"type": "file_citation", "number": 1}]
    whole, places = STREAM + DONE, sorted({0, *cuts, len(STREAM + DONE)})
    annotator = StreamAnnotator(cited)
    found = b"".join(annotator.feed(whole[a:b]) for a, b in pairwise(places)) + annotator.end()
    reference = StreamAnnotator(cited)
    assert found == reference.feed(whole) + reference.end()
    added = [line for line in found.split(b"\n") if b"annotations" in line]
    assert len(added) == 1
    assert found.replace(added[0] + b"\n\n", b"") == whole


def test_text_about_a_finish_reason_ends_nothing() -> None:
    quoting = chunk({"content": '"finish_reason": "stop"'}) + b": ping\n\n" + chunk({}, None, usage={})
    annotator = StreamAnnotator([{"number": 1}])
    assert annotator.feed(quoting) + annotator.end() == quoting
    cut = b'data: {"finish_reason": "stop"\n\nno end'
    assert annotator.feed(cut) + annotator.end() == cut
