"""Every endpoint of /v1/responses by the official SDK, over the real socket of a real process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
from sqlalchemy import create_engine, text

from appliance.assistant.store.database import FILE
from tests.assistant.running import AssistantUnderTest, assistant_running
from tests.conftest import wait_until

FUNCTION: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
FAST = "fake: tokens=3 itl_ms=0 ttft_ms=0"


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AssistantUnderTest]:
    with assistant_running(tmp_path_factory.mktemp("assistant"), "--context", "4096") as running:
        yield running


@pytest.fixture
def ada(assistant: AssistantUnderTest) -> Iterator[OpenAI]:
    with assistant.client() as client:
        yield client


@pytest.fixture
def plain(assistant: AssistantUnderTest) -> Iterator[httpx.Client]:
    with assistant.http() as client:
        yield client


def rows(assistant: AssistantUnderTest, statement: str, **values: Any) -> list[Any]:
    engine = create_engine(f"sqlite:///{assistant.folder / 'data' / FILE}")
    try:
        with engine.connect() as connection:
            return list(connection.execute(text(statement), values))
    finally:
        engine.dispose()


def conversation(assistant: AssistantUnderTest, identifier: str, tenant: str = "ada", metadata: str = "{}") -> str:
    engine = create_engine(f"sqlite:///{assistant.folder / 'data' / FILE}")
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO conversations (id, tenant, created_at, updated_at, metadata, key_id)"
                " VALUES (:id, :tenant, 1, 1, :metadata, '0123456789ab')"
            ),
            {"id": identifier, "tenant": tenant, "metadata": metadata},
        )
    engine.dispose()
    return identifier


def items_of(assistant: AssistantUnderTest, identifier: str) -> list[str]:
    found = rows(
        assistant,
        "SELECT i.type, i.body FROM conversation_items c JOIN items i ON i.id = c.item_id"
        " WHERE c.conversation_id = :id ORDER BY c.position",
        id=identifier,
    )
    return [str(row.body) for row in found]


def test_a_response_is_read_listed_and_deleted(assistant: AssistantUnderTest, ada: OpenAI) -> None:
    made = ada.responses.create(model="fake", input=f"hello {FAST}", metadata={"k": "v"}, instructions="be brief")
    assert made.status == "completed"
    assert made.output_text == "the quick brown"
    assert made.usage is not None
    assert made.usage.output_tokens == 3
    read = ada.responses.retrieve(made.id)
    assert read.model_dump() == made.model_dump()
    [item] = ada.responses.input_items.list(made.id).data
    assert item.type == "message"
    ada.responses.delete(made.id)
    with pytest.raises(NotFoundError):
        ada.responses.retrieve(made.id)
    assert rows(assistant, "SELECT 1 FROM items WHERE id = :id", id=item.id) == []


def test_input_items_are_paged(ada: OpenAI) -> None:
    items: Any = [{"role": "user", "content": f"{number} {FAST}"} for number in range(5)]
    made = ada.responses.create(model="fake", input=items)
    page = ada.responses.input_items.list(made.id, limit=2, order="asc")
    seen = [item.to_dict()["content"][0]["text"][0] for item in page]  # type: ignore[index]
    assert seen == list("01234")
    [newest, _] = ada.responses.input_items.list(made.id, limit=2).data
    assert "4 fake" in newest.to_json()


def test_a_chain_continues_and_instructions_are_not_inherited(assistant: AssistantUnderTest, ada: OpenAI) -> None:
    first = ada.responses.create(model="fake", input=f"one {FAST}", instructions="rules")
    second = ada.responses.create(model="fake", input="two", previous_response_id=first.id)
    ada.responses.create(model="fake", input="three", previous_response_id=second.id)
    messages = assistant.last_body()["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert "rules" not in str(messages)
    ada.responses.delete(first.id)
    with pytest.raises(NotFoundError, match="was deleted"):
        ada.responses.create(model="fake", input="four", previous_response_id=second.id)


def test_a_stream_ends_with_the_stored_response(ada: OpenAI) -> None:
    events = list(ada.responses.create(model="fake", input=f"hi {FAST} think=2", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1]
    assert final.type == "response.completed"
    assert ada.responses.retrieve(final.response.id).model_dump() == final.response.model_dump()
    assert [item.type for item in final.response.output] == ["reasoning", "message"]


def test_a_limit_of_tokens_gives_an_incomplete_response(ada: OpenAI) -> None:
    *_, final = ada.responses.create(model="fake", input="x fake: tokens=9", max_output_tokens=4, stream=True)
    assert final.type == "response.incomplete"
    assert final.response.incomplete_details is not None
    assert final.response.incomplete_details.reason == "max_output_tokens"


def test_a_function_is_called_and_its_output_continues(assistant: AssistantUnderTest, ada: OpenAI) -> None:
    made = ada.responses.create(model="fake", input="x fake: tool=1", tools=[FUNCTION])
    [call] = made.output
    assert call.type == "function_call"
    output: dict[str, Any] = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    own: Any = [output]
    other: Any = [{**output, "call_id": "call_none"}]
    ada.responses.create(model="fake", input=own, previous_response_id=made.id)
    user, calling, tool = assistant.last_body()["messages"]
    assert calling["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"place":"Rome"}'}
    assert tool["tool_call_id"] == call.call_id
    assert user["role"] == "user"
    with pytest.raises(BadRequestError) as raised:
        ada.responses.create(model="fake", input=other)
    assert raised.value.param == "input[0].call_id"


@pytest.mark.parametrize("user", ["bob", "ada/guest"])
def test_another_tenant_gets_the_same_404_as_for_an_unknown_id(
    assistant: AssistantUnderTest, ada: OpenAI, user: str
) -> None:
    made = ada.responses.create(model="fake", input=f"x {FAST}", background=True)
    unknown = "resp_" + "0" * 32
    with assistant.http(user) as client:
        for method, path, body in (
            ("GET", "", None),
            ("GET", "?stream=true", None),
            ("DELETE", "", None),
            ("POST", "/cancel", {}),
            ("GET", "/input_items", None),
        ):
            foreign = client.request(method, f"/responses/{made.id}{path}", json=body)
            absent = client.request(method, f"/responses/{unknown}{path}", json=body)
            assert foreign.status_code == absent.status_code == 404
            assert foreign.text.replace(made.id, "ID") == absent.text.replace(unknown, "ID")
        foreign = client.post("/responses", json={"model": "fake", "input": "x", "previous_response_id": made.id})
        assert foreign.status_code == 404
    assert ada.responses.retrieve(made.id).id == made.id


def test_an_unknown_conversation_is_never_made(assistant: AssistantUnderTest, ada: OpenAI) -> None:
    foreign = conversation(assistant, "conv_foreign", tenant="bob")
    before = rows(assistant, "SELECT count(*) FROM responses")
    for identifier in (foreign, "conv_unknown"):
        with pytest.raises(NotFoundError):
            ada.responses.create(model="fake", input="x", conversation=identifier)
    assert rows(assistant, "SELECT count(*) FROM responses") == before
    assert rows(assistant, "SELECT 1 FROM conversations WHERE id = 'conv_unknown'") == []


def test_an_unknown_model_is_a_404_and_nothing_is_stored(
    assistant: AssistantUnderTest, plain: httpx.Client
) -> None:
    styled = conversation(assistant, "conv_role", metadata='{"role": "poet", "instructions": "in rhyme"}')
    found = plain.post("/responses", json={"model": "painter", "input": "x", "conversation": styled})
    assert found.status_code == 404
    assert "painter" in found.json()["error"]["message"]
    assert rows(assistant, "SELECT 1 FROM responses WHERE conversation_id = 'conv_role'") == []
    assert items_of(assistant, styled) == []


def test_without_store_a_conversation_is_read_and_nothing_is_appended(
    assistant: AssistantUnderTest, ada: OpenAI
) -> None:
    talk = conversation(assistant, "conv_read")
    ada.responses.create(model="fake", input=f"one {FAST}", conversation=talk)
    before = items_of(assistant, talk)
    assert len(before) == 2
    made = ada.responses.create(model="fake", input=f"two {FAST}", conversation=talk, store=False)
    assert len(assistant.last_body()["messages"]) == 3
    assert items_of(assistant, talk) == before
    with pytest.raises(NotFoundError):
        ada.responses.retrieve(made.id)


def test_turns_of_one_conversation_are_serialised(assistant: AssistantUnderTest, ada: OpenAI) -> None:
    talk = conversation(assistant, "conv_busy")

    def turn(number: int) -> str:
        directive = "fake: tokens=2 itl_ms=1 ttft_ms=20"
        return ada.responses.create(model="fake", input=f"t{number} {directive}", conversation=talk).status or ""

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(turn, range(6))) == ["completed"] * 6
    bodies = items_of(assistant, talk)
    assert len(bodies) == 12
    assert ["user" if '"role":"user"' in body else "assistant" for body in bodies] == ["user", "assistant"] * 6
    assert len(assistant.last_body()["messages"]) == 11, "the last turn had all the others before it"


def test_too_many_waiting_turns_get_409_and_nothing_is_lost(assistant: AssistantUnderTest, ada: OpenAI) -> None:
    talk = conversation(assistant, "conv_full")
    results: list[int] = []

    def turn(number: int) -> None:
        try:
            ada.responses.create(model="fake", input=f"{number} fake: tokens=2 hold=1", conversation=talk)
            results.append(200)
        except APIStatusError as error:
            results.append(error.status_code)

    threads = [threading.Thread(target=turn, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(results) == 3, "three rejected turns", 30)
    assert results == [409] * 3
    for _ in range(9):
        assistant.release()
    for thread in threads:
        thread.join()
    assert sorted(results) == [200] * 9 + [409] * 3
    assert len(items_of(assistant, talk)) == 18


def test_a_client_that_disconnects_leaves_one_incomplete_response(
    assistant: AssistantUnderTest, ada: OpenAI
) -> None:
    talk = conversation(assistant, "conv_left")
    aborted = assistant.stats()["aborted"]
    stream = ada.responses.create(model="fake", input="x fake: tokens=5 hold=2", conversation=talk, stream=True)
    for event in stream:
        if event.type == "response.output_text.delta":
            break
    stream.close()
    wait_until(lambda: assistant.stats()["aborted"] == aborted + 1, "the abort of the engine")
    wait_until(lambda: len(items_of(assistant, talk)) == 2, "the stored turn")
    [row] = rows(assistant, "SELECT id, status FROM responses WHERE conversation_id = 'conv_left'")
    assert row.status == "incomplete"
    [message] = ada.responses.retrieve(row.id).output
    assert message.type == "message"
    assert message.status == "incomplete"


def test_a_client_that_disconnects_without_a_stream_stops_the_engine(
    assistant: AssistantUnderTest, plain: httpx.Client
) -> None:
    aborted = assistant.stats()["aborted"]
    with pytest.raises(httpx.ReadTimeout):
        plain.post("/responses", json={"model": "fake", "input": "x fake: tokens=5 hold=2"}, timeout=1)
    wait_until(lambda: assistant.stats()["aborted"] == aborted + 1, "the abort of the engine")
    query = "SELECT 1 FROM responses WHERE status = 'incomplete' AND conversation_id IS NULL"
    wait_until(lambda: len(rows(assistant, query)) >= 1, "the stored response")


def test_a_background_response_is_polled(ada: OpenAI, assistant: AssistantUnderTest) -> None:
    made = ada.responses.create(model="fake", input="x fake: tokens=3 hold=1", background=True)
    assert made.status == "queued"
    wait_until(lambda: ada.responses.retrieve(made.id).status == "in_progress", "the start")
    with pytest.raises(APIStatusError) as raised:
        ada.responses.create(model="fake", input="y", previous_response_id=made.id)
    assert raised.value.status_code == 409
    assistant.release()
    wait_until(lambda: ada.responses.retrieve(made.id).status == "completed", "the end")
    assert ada.responses.retrieve(made.id).output_text == "the quick brown"


def test_a_background_response_is_cancelled_once(ada: OpenAI, assistant: AssistantUnderTest) -> None:
    aborted = assistant.stats()["aborted"]
    made = ada.responses.create(model="fake", input="x fake: tokens=3 hold=1", background=True)
    wait_until(lambda: assistant.stats()["active"] > 0, "the call of the engine")
    assert ada.responses.cancel(made.id).status == "cancelled"
    assert ada.responses.cancel(made.id).status == "cancelled"
    assert ada.responses.retrieve(made.id).status == "cancelled"
    wait_until(lambda: assistant.stats()["aborted"] == aborted + 1, "the abort of the engine")
    foreground = ada.responses.create(model="fake", input=f"x {FAST}")
    with pytest.raises(BadRequestError):
        ada.responses.cancel(foreground.id)


def test_a_stream_resumes_after_a_number_without_a_gap(
    ada: OpenAI, plain: httpx.Client, assistant: AssistantUnderTest
) -> None:
    stream = ada.responses.create(model="fake", input="x fake: tokens=6 hold=3", background=True, stream=True)
    seen = []
    for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta":
            break
    stream.close()
    identifier = seen[0].response.id  # type: ignore[union-attr]
    assistant.release()
    after = seen[-1].sequence_number
    rest = list(ada.responses.retrieve(identifier, stream=True, starting_after=after))
    assert [event.sequence_number for event in (*seen, *rest)] == list(range(len(seen) + len(rest)))
    assert rest[-1].type == "response.completed"
    assert plain.get(f"/responses/{identifier}?starting_after=1").json()["error"]["param"] == "starting_after"


def test_a_resume_of_expired_events_is_a_distinct_error(ada: OpenAI, plain: httpx.Client) -> None:
    made = ada.responses.create(model="fake", input=f"x {FAST}")
    found = plain.get(f"/responses/{made.id}?stream=true&starting_after=2")
    assert found.status_code == 400
    assert found.json()["error"]["code"] == "events_expired"


def test_a_running_response_is_deleted_whole(ada: OpenAI, assistant: AssistantUnderTest) -> None:
    made = ada.responses.create(model="fake", input="x fake: tokens=3 hold=1", background=True)
    ada.responses.delete(made.id)
    with pytest.raises(NotFoundError):
        ada.responses.retrieve(made.id)
    assert rows(assistant, "SELECT 1 FROM response_items WHERE response_id = :id", id=made.id) == []


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("status:400", 400, None),
        ("status:429", 429, None),
        ("status:503", 503, None),
        ("reset", 502, "engine_failed"),
    ],
)
def test_an_engine_that_refuses_leaves_nothing(
    assistant: AssistantUnderTest, plain: httpx.Client, fault: str, status: int, code: str | None
) -> None:
    before = rows(assistant, "SELECT count(*) FROM items"), rows(assistant, "SELECT count(*) FROM responses")
    for stream in (False, True):
        body = {"model": "fake", "input": f"x fake: fault={fault}", "stream": stream}
        found = plain.post("/responses", json=body)
        assert found.status_code == status, found.text
        if code is not None:
            assert found.json()["error"]["code"] == code
    after = rows(assistant, "SELECT count(*) FROM items"), rows(assistant, "SELECT count(*) FROM responses")
    assert after == before


@pytest.mark.parametrize("fault", ["cut:2", "error:2", "garbage:2", "no_finish"])
def test_a_stream_that_fails_gives_a_failed_response_without_half_items(ada: OpenAI, fault: str) -> None:
    *_, final = ada.responses.create(model="fake", input=f"x fake: tokens=5 fault={fault}", stream=True)
    assert final.type == "response.failed"
    assert final.response.error is not None
    assert final.response.error.code == "server_error"
    assert final.response.output == []
    assert ada.responses.retrieve(final.response.id).status == "failed"


def test_a_failed_turn_is_not_in_its_conversation(assistant: AssistantUnderTest, ada: OpenAI) -> None:
    talk = conversation(assistant, "conv_failed")
    made = ada.responses.create(model="fake", input="x fake: tokens=5 fault=cut:2", conversation=talk)
    assert made.status == "failed"
    assert items_of(assistant, talk) == []
    ada.responses.create(model="fake", input=f"y {FAST}", conversation=talk)
    assert len(items_of(assistant, talk)) == 2


def test_tools_that_are_not_run_here_are_named(plain: httpx.Client) -> None:
    body: dict[str, Any] = {"model": "fake", "input": f"x {FAST}", "tools": [{"type": "code_interpreter"}]}
    found = plain.post("/responses", json=body)
    assert found.status_code == 400
    assert "code_interpreter" in found.json()["error"]["message"]
    found = plain.post("/responses", json=body | {"tools": [{"type": "web_search"}]})
    assert found.status_code == 200
    assert found.headers["x-appliance-removed-tools"] == "web_search"


def test_an_unknown_vector_store_is_a_404(plain: httpx.Client) -> None:
    tools = [{"type": "file_search", "vector_store_ids": ["vs_none"]}]
    assert plain.post("/responses", json={"model": "fake", "input": "x", "tools": tools}).status_code == 404


def test_a_body_that_is_not_json_is_a_400(plain: httpx.Client) -> None:
    assert plain.post("/responses", content=b"{").status_code == 400
    assert plain.post("/responses", json={"input": "x"}).json()["error"]["param"] == "model"


def test_a_context_overflow_is_a_400_or_drops_the_oldest_rounds(assistant: AssistantUnderTest, ada: OpenAI) -> None:
    talk = conversation(assistant, "conv_long")
    for number in range(4):
        words = " ".join([f"word{number}"] * 900)
        ada.responses.create(model="fake", input=f"{words} {FAST}", conversation=talk)
    words = "last " * 900
    with pytest.raises(BadRequestError) as raised:
        ada.responses.create(model="fake", input=words, conversation=talk, max_output_tokens=100)
    assert raised.value.code == "context_length_exceeded"
    ada.responses.create(model="fake", input=words, conversation=talk, max_output_tokens=100, truncation="auto")
    messages = assistant.last_body()["messages"]
    assert "word3" in str(messages)
    assert "word0" not in str(messages)
    assert messages[-1]["content"] == words
    with pytest.raises(BadRequestError):
        ada.responses.create(model="fake", input="a " * 5000, conversation=talk, truncation="auto")


def test_tokens_are_counted_and_items_compacted(assistant: AssistantUnderTest, ada: OpenAI) -> None:
    counted = ada.responses.input_tokens.count(model="fake", input="one two three", instructions="be brief")
    assert counted.input_tokens == 15
    compacted = ada.responses.compact(model="fake", input="one two three")
    assert [item.type for item in compacted.output] == ["message", "compaction"]
    summary: Any = compacted.output[-1].model_dump()
    ada.responses.create(model="fake", input=[summary, {"role": "user", "content": "on"}])
    assert "the quick brown" in assistant.last_body()["messages"][0]["content"]
    with pytest.raises(BadRequestError) as raised:
        ada.responses.compact(model="fake", input=[])
    assert raised.value.param == "input"


def test_no_prompt_is_in_the_log(assistant: AssistantUnderTest, ada: OpenAI) -> None:
    ada.responses.create(
        model="fake", input="secretword fake: tokens=5 fault=cut:2", tools=[{"type": "web_search"}]
    )
    assert "secretword" not in assistant.log.read_text()
