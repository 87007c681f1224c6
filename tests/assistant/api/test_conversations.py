"""`/v1/conversations` by OpenAI's own client, over a real socket."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.conversations import Conversation, ConversationItemList, Message
from pydantic import TypeAdapter

from tests.assistant.api.conftest import RunningAssistant, headers

UNKNOWN = "conv_" + "0" * 32


@pytest.fixture
def ada(assistant: RunningAssistant) -> Iterator[openai.OpenAI]:
    with assistant.client("ada") as client:
        yield client


@pytest.fixture
def raw(assistant: RunningAssistant) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=assistant.url, headers=headers("ada"), trust_env=False, timeout=60) as client:
        yield client


def valid(kind: Any, value: Any) -> Any:
    """Check ``value`` of the SDK strictly: the SDK itself accepts any JSON."""
    TypeAdapter(kind).validate_python(value.model_dump())
    return value


def texts(items: Any) -> list[str]:
    return [item.content[0].text for item in items]


def test_a_conversation_lives_and_ends(ada: openai.OpenAI) -> None:
    made = valid(Conversation, ada.conversations.create(metadata={"title": "Trip", "role": "writer"}))
    assert made.metadata == {"title": "Trip", "role": "writer"}
    assert valid(Conversation, ada.conversations.retrieve(made.id)) == made
    changed = ada.conversations.update(made.id, metadata={"title": "Voyage"})
    assert changed.metadata == {"title": "Voyage"}
    assert ada.conversations.update(made.id, metadata=None).metadata == {}
    ended = ada.conversations.delete(made.id)
    assert (ended.id, ended.deleted, ended.object) == (made.id, True, "conversation.deleted")
    with pytest.raises(openai.NotFoundError):
        ada.conversations.retrieve(made.id)


def test_items_are_added_read_and_deleted(ada: openai.OpenAI) -> None:
    made = ada.conversations.create(items=[{"role": "user", "content": "one"}])
    added = valid(
        ConversationItemList,
        ada.conversations.items.create(
            made.id,
            items=[
                {"role": "assistant", "content": "two"},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "three"}]},
            ],
        ),
    )
    assert texts(added.data) == ["two", "three"]
    assert (added.first_id, added.last_id, added.has_more) == (added.data[0].id, added.data[1].id, False)
    newest = ada.conversations.items.list(made.id)
    assert texts(newest.data) == ["three", "two", "one"]
    assert texts(ada.conversations.items.list(made.id, order="asc", limit=1)) == ["one", "two", "three"]
    item = valid(Message, ada.conversations.items.retrieve(added.first_id, conversation_id=made.id))
    assert (item.role, item.status, item.content[0].type) == ("assistant", "completed", "output_text")
    assert ada.conversations.items.delete(added.first_id, conversation_id=made.id) == made
    assert texts(ada.conversations.items.list(made.id, order="asc")) == ["one", "three"]
    with pytest.raises(openai.NotFoundError):
        ada.conversations.items.retrieve(added.first_id, conversation_id=made.id)


def test_each_type_of_item_is_kept_in_the_form_of_the_sdk(ada: openai.OpenAI) -> None:
    items: list[Any] = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]},
        {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "12:00"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "x"},
        {"type": "file_search_call", "queries": ["q"], "results": [{"file_id": "file-1", "text": "t"}]},
        {"type": "mcp_approval_response", "approval_request_id": "a1", "approve": True},
        {"role": "assistant", "content": [{"type": "output_text", "text": "noon", "logprobs": []}]},
    ]
    made = ada.conversations.create(items=items)
    listed = ada.conversations.items.list(made.id, order="asc", include=["file_search_call.results"])
    page = TypeAdapter(ConversationItemList)
    page.validate_python({"object": "list", "data": [i.model_dump() for i in listed.data], "has_more": False,
                          "first_id": listed.data[0].id, "last_id": listed.data[-1].id})  # fmt: skip
    kept = [item.model_dump(exclude_unset=True) for item in listed.data]
    assert [item["type"] for item in kept] == [
        "message",
        "message",
        *(item["type"] for item in items[2:7]),
        "message",
    ]
    assert kept[2]["status"] == kept[3]["status"] == "completed"
    assert kept[5]["results"] == [{"file_id": "file-1", "text": "t"}]
    assert kept[6]["approve"] is True
    assert "encrypted_content" not in kept[4]
    assert kept[7]["content"] == [{"type": "output_text", "text": "noon", "annotations": []}]
    plain = ada.conversations.items.list(made.id, order="asc").data
    assert plain[5].model_dump()["results"] is None
    search = ada.conversations.items.retrieve(
        plain[4].id or "", conversation_id=made.id, include=["reasoning.encrypted_content"]
    )
    assert search.model_dump()["encrypted_content"] == "x"


def test_conversations_are_listed_searched_closed_and_exported(
    assistant: RunningAssistant, raw: httpx.Client
) -> None:
    with httpx.Client(base_url=assistant.url, headers=headers("carol"), trust_env=False, timeout=60) as client:
        made = [
            client.post("/v1/conversations", json={"metadata": {"title": title}}).json()["id"]
            for title in ("Berlin trip", "Trips to Rome", "Taxes")
        ]
        first = client.get("/v1/conversations", params={"limit": 2}).json()
        assert [one["id"] for one in first["data"]] == [made[2], made[1]]
        assert (first["has_more"], first["first_id"], first["last_id"]) == (True, made[2], made[1])
        rest = client.get("/v1/conversations", params={"limit": 2, "after": first["last_id"]}).json()
        assert ([one["id"] for one in rest["data"]], rest["has_more"]) == ([made[0]], False)
        found = client.get("/v1/conversations", params={"query": "trip", "order": "asc"}).json()
        assert [one["id"] for one in found["data"]] == made[:2]
        nothing = client.get("/v1/conversations", params={"query": "trip taxes"}).json()
        assert nothing == {"object": "list", "data": [], "first_id": "", "last_id": "", "has_more": False}
        closed = client.post(f"/v1/conversations/{made[0]}/close").json()
        assert closed["closed_at"] >= closed["created_at"]
        client.post(f"/v1/conversations/{made[0]}/items", json={"items": [{"role": "user", "content": "Hi"}]})
        export = client.get(f"/v1/conversations/{made[0]}/export")
        assert export.headers["content-disposition"] == f'attachment; filename="{made[0]}.json"'
        whole = export.json()
        assert (whole["object"], whole["version"]) == ("conversation.export", 1)
        assert whole["conversation"]["metadata"] == {"title": "Berlin trip"}
        assert whole["conversation"]["closed_at"] is None
        assert [item["content"][0]["text"] for item in whole["items"]] == ["Hi"]
    # An end user of the same key is another tenant.
    own = raw.get("/v1/conversations", headers=headers("carol/end")).json()
    assert own["data"] == []


MESSAGE = {"role": "user", "content": "x"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "21 items": ({"items": [MESSAGE] * 21}, "items"),
    "items as an object": ({"items": MESSAGE}, "items"),
    "an item that is a text": ({"items": ["x"]}, "items[0]"),
    "an item without type": ({"items": [MESSAGE, {}]}, "items[1].type"),
    "a type with capitals": ({"items": [{"type": "Message"}]}, "items[0].type"),
    "a long type": ({"items": [{"type": "m" * 41}]}, "items[0].type"),
    "an unknown role": ({"items": [{"role": "king", "content": "x"}]}, "items[0].role"),
    "no content": ({"items": [{"role": "user"}]}, "items[0].content"),
    "a number as content": ({"items": [{"role": "user", "content": 1}]}, "items[0].content"),
    "a part without text": (
        {"items": [{"role": "user", "content": [{"type": "input_text"}]}]},
        "items[0].content[0].text",
    ),
    "a part without type": ({"items": [{"role": "user", "content": [{}]}]}, "items[0].content[0].type"),
    "an unknown status": ({"items": [{**MESSAGE, "status": "lost"}]}, "items[0].status"),
    "a call without arguments": (
        {"items": [{"type": "function_call", "call_id": "1", "name": "f"}]},
        "items[0].arguments",
    ),
    "an output without call": ({"items": [{"type": "function_call_output", "output": ""}]}, "items[0].call_id"),
    "a search without queries": ({"items": [{"type": "file_search_call"}]}, "items[0].queries"),
    "a reference without id": ({"items": [{"type": "item_reference"}]}, "items[0].id"),
    "17 pairs": ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    "a name of 65": ({"metadata": {"n" * 65: ""}}, "metadata." + "n" * 64),
    "an empty name": ({"metadata": {"": "x"}}, "metadata."),
    "a value of 513": ({"metadata": {"title": "t" * 513}}, "metadata.title"),
    "a number as value": ({"metadata": {"title": 1}}, "metadata.title"),
    "metadata that are a list": ({"metadata": []}, "metadata"),
    "an unknown field": ({"itemz": []}, "itemz"),
    "a NUL character": ({"items": [{"role": "user", "content": "a\0b"}]}, "items[0].content"),
    "a NUL character in a name": ({"items": [{"type": "x", "a\0": 1}]}, "items[0]"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_body_that_is_not_valid_names_its_field_and_stores_nothing(raw: httpx.Client, name: str) -> None:
    body, param = BAD[name]
    before = raw.get("/v1/conversations", params={"limit": 1}).json()
    response = raw.post("/v1/conversations", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert raw.get("/v1/conversations", params={"limit": 1}).json() == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"metadata":{"title":"\\ud800"}}', 400),
        (b'{"metadata":{"title":"\xff"}}', 400),
        (b'{"items":[{"type":"x","value":NaN}]}', 400),
        (b'{"items":[{"type":"x","value":1e999}]}', 400),
        (b'{"items":' + b"[" * 70 + b"]" * 70 + b"}", 400),
        (b'{"items":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"items":[{"role":"user","content":"' + b"x" * 1_000_000 + b'"}]}', 413),
    ],
    ids=["cut", "list", "surrogate", "bytes", "nan", "infinity", "71 levels", "100,000 levels", "too large"],
)
def test_a_body_that_cannot_be_stored_is_refused(raw: httpx.Client, body: bytes, status: int) -> None:
    response = raw.post("/v1/conversations", content=body)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_the_largest_body_that_is_valid_is_accepted(raw: httpx.Client) -> None:
    metadata = {f"{number:064}": "ä" * 512 for number in range(16)}
    items = [{"type": "x", "deep": json.loads("[" * 60 + "]" * 60)}, *[MESSAGE] * 19]
    made = raw.post("/v1/conversations", json={"metadata": metadata, "items": items})
    assert made.status_code == 200
    listed = raw.get(f"/v1/conversations/{made.json()['id']}/items", params={"limit": 100, "order": "asc"}).json()
    assert len(listed["data"]) == 20
    assert listed["data"][0]["deep"] == items[0]["deep"]
    assert raw.post("/v1/conversations").status_code == 200


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"order": "up"}, "order"),
        ({"query": "q" * 1001}, "query"),
    ],
)
def test_a_list_has_limits(raw: httpx.Client, query: dict[str, Any], param: str) -> None:
    response = raw.get("/v1/conversations", params=query)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("identifier", [UNKNOWN, "x", "conv_%00", "conv_" + "0" * 90, "%ff", "conv_'or'1"])
def test_an_id_without_an_object_is_not_found(raw: httpx.Client, identifier: str) -> None:
    for method, path, body in (
        ("GET", f"/v1/conversations/{identifier}", None),
        ("POST", f"/v1/conversations/{identifier}", {"metadata": {}}),
        ("DELETE", f"/v1/conversations/{identifier}", None),
        ("GET", f"/v1/conversations/{identifier}/items", None),
        ("POST", f"/v1/conversations/{identifier}/items", {"items": [MESSAGE]}),
        ("GET", f"/v1/conversations/{identifier}/export", None),
        ("POST", f"/v1/conversations/{identifier}/close", None),
        ("GET", f"/v1/conversations?after={identifier}", None),
    ):
        response = raw.request(method, path, json=body)
        assert response.status_code == 404, (method, path, response.text)
        error = response.json()["error"]
        assert error["code"] == "not_found"
        assert error["message"].startswith("No conversation found with id '")


def test_an_update_without_metadata_is_refused(raw: httpx.Client) -> None:
    made = raw.post("/v1/conversations", json={"metadata": {"title": "kept"}}).json()
    assert raw.post(f"/v1/conversations/{made['id']}", json={}).json()["error"]["param"] == "metadata"
    assert raw.post(f"/v1/conversations/{made['id']}/items", json={"items": []}).json()["error"]["param"] == "items"
    assert raw.get(f"/v1/conversations/{made['id']}").json() == made


def test_no_text_of_a_request_is_in_the_log(
    raw: httpx.Client, assistant: RunningAssistant, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "marzipan-4711"
    made = raw.post("/v1/conversations", json={"items": [{"role": "user", "content": secret}]}).json()
    raw.get("/v1/conversations", params={"query": "other"})
    raw.post("/v1/conversations", json={"items": [{"role": secret, "content": secret}]})
    raw.get(f"/v1/conversations/{made['id']}/export")
    assert secret not in caplog.text
