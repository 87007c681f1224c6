"""Every method of OpenAI's SDKs for Python and Node whose endpoint the assistant serves, through the real gateway.

Each test calls methods by their names of Python, in both SDKs. ``test_every_method_of_the_sdk_is_called`` compares
the names in this file with the methods of the installed SDKs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.assistant_clients.sdk_calls import SdkCallError, SdkCalls, SentFile
from tests.assistant_clients.site import MODEL, ServiceWithState

NOT_OFFERED = {
    "responses.connect": "a WebSocket; the tests below cover streams over HTTP",
    "uploads.create": "uploads in parts: 404 that names /v1/files",
    "uploads.complete": "as uploads.create",
    "uploads.cancel": "as uploads.create",
    "uploads.parts.create": "as uploads.create",
    "uploads.upload_file_chunked": "as uploads.create",
    "files.retrieve_content": "an old name of files.content",
}
"""Methods that these tests do not call, with the reason."""

FAST = "fake: tokens=3 itl_ms=0 ttft_ms=0"
TEXT = "the quick brown"
ROME = SentFile("rome.md", "# Capitals\n\nRome is the capital of Italy. Its river is the Tiber.\n")
OSLO = SentFile("oslo.md", "# Capitals\n\nOslo is the capital of Norway. It is at a fjord.\n")
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}


def message(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def text_of(response: dict[str, Any]) -> str:
    found: str = response["output"][-1]["content"][0]["text"]
    return found


def missing(sdk: SdkCalls, method: str, *args: Any, **fields: Any) -> None:
    """Assert that the call raises the SDK's error of a 404."""
    with pytest.raises(SdkCallError) as raised:
        sdk.call(method, *args, **fields)
    assert raised.value.status == 404


def test_a_response_is_created_read_listed_and_deleted(sdk: SdkCalls) -> None:
    made = sdk.call(
        "responses.create",
        model=MODEL,
        input=[message(f"{number} {FAST}") for number in range(3)],
        metadata={"k": "v"},
    )
    assert (made["status"], text_of(made), made["usage"]["output_tokens"]) == ("completed", TEXT, 3)
    read = sdk.call("responses.retrieve", made["id"])
    assert (read["output"], read["metadata"]) == (made["output"], {"k": "v"})
    items = sdk.call("responses.input_items.list", made["id"], limit=2, order="asc")
    assert [item["content"][0]["text"][0] for item in items] == ["0", "1", "2"]
    sdk.call("responses.delete", made["id"])
    missing(sdk, "responses.retrieve", made["id"])


def test_streams_have_numbered_events_and_the_stored_response(sdk: SdkCalls) -> None:
    for events in (
        sdk.call("responses.create", model=MODEL, input=FAST, stream=True),
        sdk.call("responses.stream", model=MODEL, input=FAST),
    ):
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == TEXT
        assert events[-1]["type"] == "response.completed"
        stored = sdk.call("responses.retrieve", events[-1]["response"]["id"])
        assert stored["output"][0]["id"] == events[-1]["response"]["output"][0]["id"]


def test_a_background_response_is_resumed_and_cancelled(sdk: SdkCalls, stateful: ServiceWithState) -> None:
    made = sdk.call("responses.create", model=MODEL, input="fake: tokens=99 hold=2", background=True)
    assert made["status"] in ("queued", "in_progress")
    cancelled = sdk.call("responses.cancel", made["id"])
    assert cancelled["status"] == "cancelled"
    events = sdk.call("responses.retrieve", made["id"], stream=True, starting_after=0)
    assert events[0]["sequence_number"] == 1
    ended = sdk.call("responses.create", model=MODEL, input=FAST)
    with pytest.raises(SdkCallError, match="Only a background response"):
        sdk.call("responses.cancel", ended["id"])
    assert sdk.call("responses.retrieve", made["id"])["status"] == "cancelled"


def test_a_tool_is_called_with_arguments_of_its_schema_and_its_output_continues(sdk: SdkCalls) -> None:
    made = sdk.call("responses.create", model=MODEL, input="hi", tools=[WEATHER], tool_choice="required")
    [call] = made["output"]
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "weather", '{"place":"Rome"}')
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    after = sdk.call("responses.create", model=MODEL, input=[output], previous_response_id=made["id"])
    assert after["previous_response_id"] == made["id"]
    assert after["output"][0]["type"] == "message"


def test_a_response_is_parsed(sdk: SdkCalls) -> None:
    made = sdk.call(
        "responses.parse", model=MODEL, input="hi", tools=[WEATHER | {"strict": True}], tool_choice="required"
    )
    assert made["output"][0]["parsed_arguments"] == {"place": "Rome"}


def test_tokens_are_counted_and_a_conversation_is_compacted(sdk: SdkCalls) -> None:
    few = sdk.call("responses.input_tokens.count", model=MODEL, input="one two three")
    many = sdk.call("responses.input_tokens.count", model=MODEL, input="one two three " * 9)
    assert many["input_tokens"] > few["input_tokens"] > 0
    made = sdk.call("responses.compact", model=MODEL, input=[message("one"), message(FAST)])
    assert made["object"] == "response.compaction"
    assert made["output"][-1]["type"] == "compaction"
    after = sdk.call("responses.create", model=MODEL, input=[*made["output"], message(FAST)])
    assert after["status"] == "completed"


def test_a_conversation_lives_from_its_creation_to_its_deletion(sdk: SdkCalls) -> None:
    chat = sdk.call("conversations.create", metadata={"title": "Rome"}, items=[message("first")])
    assert sdk.call("conversations.retrieve", chat["id"])["metadata"] == {"title": "Rome"}
    assert sdk.call("conversations.update", chat["id"], metadata={"title": "Oslo"})["metadata"] == {"title": "Oslo"}
    added = sdk.call("conversations.items.create", chat["id"], items=[message("second"), message("third")])
    sdk.call("responses.create", model=MODEL, input=FAST, conversation=chat["id"])
    listed = sdk.call("conversations.items.list", chat["id"], limit=2, order="asc")
    assert [item["content"][0]["text"] for item in listed] == ["first", "second", "third", FAST, TEXT]
    second = added["data"][0]["id"]
    found = sdk.call("conversations.items.retrieve", second, conversation_id=chat["id"])
    assert found["content"][0]["text"] == "second"
    assert sdk.call("conversations.items.delete", second, conversation_id=chat["id"])["id"] == chat["id"]
    missing(sdk, "conversations.items.retrieve", second, conversation_id=chat["id"])
    assert sdk.call("conversations.delete", chat["id"])["deleted"] is True
    missing(sdk, "conversations.retrieve", chat["id"])


def test_a_file_is_stored_listed_downloaded_and_deleted(sdk: SdkCalls) -> None:
    made = [sdk.call("files.create", file=file, purpose="user_data")["id"] for file in (ROME, OSLO)]
    assert sdk.call("files.retrieve", made[0])["filename"] == "rome.md"
    listed = sdk.call("files.list", limit=1, order="desc")
    assert {file["id"] for file in listed} >= {*made}
    assert sdk.call("files.content", made[0]) == ROME.text
    assert sdk.call("files.wait_for_processing", made[0])["status"] == "processed"
    for file in made:
        assert sdk.call("files.delete", file)["deleted"] is True
    missing(sdk, "files.retrieve", made[0])


def test_a_store_is_created_changed_listed_and_deleted(sdk: SdkCalls) -> None:
    made = sdk.call("vector_stores.create", name="capitals", expires_after={"anchor": "last_active_at", "days": 7})
    assert sdk.call("vector_stores.retrieve", made["id"])["expires_after"]["days"] == 7
    assert sdk.call("vector_stores.update", made["id"], name="towns", metadata={"k": "v"})["name"] == "towns"
    sdk.call("vector_stores.create", name="other")
    listed = sdk.call("vector_stores.list", limit=1)
    assert len(listed) >= 2
    assert made["id"] in {store["id"] for store in listed}
    assert sdk.call("vector_stores.delete", made["id"])["deleted"] is True
    missing(sdk, "vector_stores.retrieve", made["id"])


def test_files_enter_a_store_and_are_found(sdk: SdkCalls) -> None:
    store = sdk.call("vector_stores.create", name="capitals")["id"]
    rome = sdk.call("vector_stores.files.upload_and_poll", store, ROME)
    assert (rome["status"], rome["last_error"]) == ("completed", None)
    uploaded = sdk.call("files.create", file=OSLO, purpose="assistants")["id"]
    oslo = sdk.call("vector_stores.files.create_and_poll", store, file_id=uploaded, attributes={"north": True})
    assert oslo["status"] == "completed"
    sent = sdk.call("vector_stores.files.upload", store, SentFile("draft.md", "A draft about fjords."))
    assert sdk.call("vector_stores.files.poll", store, sent["id"])["status"] == "completed"
    assert sdk.call("vector_stores.files.delete", sent["id"], vector_store_id=store)["deleted"] is True
    sdk.call("vector_stores.files.create", store, file_id=sent["id"])
    assert sdk.call("vector_stores.files.poll", store, sent["id"])["status"] == "completed"
    listed = sdk.call("vector_stores.files.list", store, limit=2, order="asc")
    assert {file["id"] for file in listed} == {rome["id"], uploaded, sent["id"]}

    best = sdk.call("vector_stores.search", store, query="the capital of Italy", max_num_results=2)[0]
    assert (best["file_id"], best["filename"], best["attributes"]) == (rome["id"], "rome.md", {})
    assert "Rome is the capital" in best["content"][0]["text"]
    north = {"type": "eq", "key": "north", "value": True}
    assert [
        hit["filename"] for hit in sdk.call("vector_stores.search", store, query=["capital"], filters=north)
    ] == ["oslo.md"]
    sdk.call("vector_stores.files.update", uploaded, vector_store_id=store, attributes={"north": False})
    found = sdk.call("vector_stores.files.retrieve", uploaded, vector_store_id=store)
    assert found["attributes"] == {"north": False}
    assert sdk.call("vector_stores.search", store, query="capital", filters=north) == []
    parts = sdk.call("vector_stores.files.content", rome["id"], vector_store_id=store)
    assert "Tiber" in parts[0]["text"]

    events = sdk.call(
        "responses.create",
        model=MODEL,
        input="which city? fake: search=1 tokens=2",
        tools=[{"type": "file_search", "vector_store_ids": [store]}],
        include=["file_search_call.results"],
        stream=True,
    )
    search, answer = events[-1]["response"]["output"]
    assert search["results"][0]["file_id"] == rome["id"]
    [citation] = answer["content"][0]["annotations"]
    assert (citation["type"], citation["filename"]) == ("file_citation", "rome.md")
    assert citation["file_id"] == rome["id"]
    assert "response.output_text.annotation.added" in {event["type"] for event in events}


def test_batches_of_files(sdk: SdkCalls) -> None:
    store = sdk.call("vector_stores.create", name="batches")["id"]
    batch = sdk.call("vector_stores.file_batches.upload_and_poll", store, files=[ROME, OSLO])
    assert (batch["status"], batch["file_counts"]["completed"]) == ("completed", 2)
    files = [sdk.call("files.create", file=file, purpose="assistants")["id"] for file in (ROME, OSLO)]
    batch = sdk.call("vector_stores.file_batches.create_and_poll", store, file_ids=files)
    assert batch["file_counts"]["completed"] == 2
    listed = sdk.call("vector_stores.file_batches.list_files", batch["id"], vector_store_id=store, limit=1)
    assert {file["id"] for file in listed} == {*files}
    made = sdk.call(
        "vector_stores.file_batches.create", store, files=[{"file_id": files[0], "attributes": {"n": 1}}]
    )
    assert sdk.call("vector_stores.file_batches.poll", store, made["id"])["status"] == "completed"
    assert sdk.call("vector_stores.file_batches.retrieve", made["id"], vector_store_id=store)["id"] == made["id"]
    cancelled = sdk.call("vector_stores.file_batches.cancel", made["id"], vector_store_id=store)
    assert cancelled["file_counts"]["total"] == 1
    missing(sdk, "vector_stores.file_batches.retrieve", "vsfb_none", vector_store_id=store)


def test_a_file_that_cannot_be_read_fails_and_the_others_of_its_batch_complete(sdk: SdkCalls) -> None:
    store = sdk.call("vector_stores.create", name="mixed")["id"]
    empty, binary = SentFile("empty.md", " \n"), SentFile("data.bin", "\x01\x02\x03")
    batch = sdk.call("vector_stores.file_batches.upload_and_poll", store, files=[ROME, empty, binary])
    assert (batch["file_counts"]["completed"], batch["file_counts"]["failed"]) == (1, 2)
    failed = sdk.call("vector_stores.files.list", store, filter="failed")
    assert {file["last_error"]["code"] for file in failed} == {"invalid_file", "unsupported_file"}


@pytest.mark.parametrize(
    ("method", "args", "fields", "param"),
    [
        ("responses.create", (), {"model": MODEL, "input": "x", "tools": [{"type": "mcp"}]}, "tools[0].type"),
        ("responses.create", (), {"model": MODEL, "input": "x", "temperature": 3}, "temperature"),
        ("responses.input_tokens.count", (), {"model": MODEL, "input": 7}, "input"),
        ("conversations.create", (), {"items": [message("x")] * 21}, "items"),
        ("conversations.create", (), {"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ("files.create", (), {"file": ROME, "purpose": "none"}, "purpose"),
        ("vector_stores.create", (), {"chunking_strategy": {"type": "static"}, "file_ids": ["file-x"]}, None),
        ("vector_stores.list", (), {"limit": 101}, "limit"),
    ],
)
def test_an_invalid_field_is_named(
    sdk: SdkCalls, method: str, args: tuple[Any, ...], fields: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(SdkCallError) as raised:
        sdk.call(method, *args, **fields)
    assert raised.value.status == 400
    assert param is None or raised.value.param == param


def test_uploads_in_parts_are_refused_with_the_endpoint_that_serves_files(sdk: SdkCalls) -> None:
    with pytest.raises(SdkCallError, match="send the whole file to POST /v1/files") as raised:
        sdk.call("uploads.create", bytes=3, filename="x.md", mime_type="text/markdown", purpose="assistants")
    assert raised.value.status == 404
    with pytest.raises(SdkCallError, match="/v1/files"):
        sdk.call("uploads.cancel", "upload_1")


def test_every_method_of_the_sdk_is_called(sdk: SdkCalls) -> None:
    source = Path(__file__).read_text()
    called = set(re.findall(r'(?:call|missing)\(\s*(?:sdk, )?"([a-z_.]+)"', source))
    found = sdk.methods()
    assert len(found) > 40
    assert found - called - NOT_OFFERED.keys() == set()


def test_users_of_two_sdks_share_nothing(python_calls: SdkCalls, node_calls: SdkCalls) -> None:
    store = node_calls.call("vector_stores.create", name="own")["id"]
    chat = node_calls.call("conversations.create")["id"]
    missing(python_calls, "vector_stores.retrieve", store)
    missing(python_calls, "conversations.retrieve", chat)
    assert store not in {one["id"] for one in python_calls.call("vector_stores.list")}
