"""Requests with state are recognised in every spelling that an engine accepts; all others stay at an engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.contract.model import Site
from appliance.gateway.stateful import AssistantChats, is_stateful

FUNCTION = {"type": "function", "name": "f", "parameters": {}}


@pytest.mark.parametrize(
    "more",
    [
        {"store": False},
        {"store": "false"},
        {"store": 0},
        {"store": False, "tools": []},
        {"store": False, "tools": None},
        {"store": False, "tools": [FUNCTION, {"type": "custom"}, {"type": "namespace"}]},
        {"store": False, "tools": [{"type": "web_searcher"}]},
        {"store": False, "tools": 3},
        {"store": False, "previous_response_id": None, "conversation": None, "background": False},
        {"store": False, "background": None},
        {"store": False, "temperature": float("nan")},
    ],
)
def test_a_request_without_state_stays_at_an_engine(more: dict[str, Any]) -> None:
    assert not is_stateful(json.dumps({"model": "m", "input": "store conversation", **more}).encode())


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"store": None},
        {"store": True},
        {"store": "true"},
        {"store": "perhaps"},
        {"store": False, "background": True},
        {"store": False, "background": 1},
        {"store": False, "previous_response_id": "resp_1"},
        {"store": False, "previous_response_id": 3},
        {"store": False, "conversation": {"id": "conv_1"}},
        {"store": False, "tools": [FUNCTION, {"type": "file_search", "vector_store_ids": ["vs_1"]}]},
        {"store": False, "tools": [{"type": "web_search_preview_2025_03_11"}]},
        {"store": False, "tools": [{"type": "mcp"}], "temperature": float("nan")},
        {"store": False, "conversation": "conv_1", "temperature": float("inf")},
    ],
)
def test_a_request_with_state_needs_the_assistant(more: dict[str, Any]) -> None:
    assert is_stateful(json.dumps({"model": "m", "input": "hi", **more}).encode())


def test_an_escaped_name_is_the_same_field() -> None:
    assert is_stateful(b'{"store":false,"convers\\u0061tion":"conv_1"}')


@given(st.binary(max_size=60))
def test_any_bytes_are_read(body: bytes) -> None:
    assert is_stateful(body) in (True, False)
    assert is_stateful(b'{"store":false,"x":' + body) in (True, False)


@pytest.mark.parametrize("body", [b"", b"[]", b"3", b"{", b'{"store":tru'])
def test_a_body_that_is_not_an_object_is_left_to_an_engine(body: bytes) -> None:
    assert not is_stateful(body)


def chats(*, search: bool = False, **memory: list[str]) -> AssistantChats:
    site = {
        "version": 1,
        "hosts": {"here": {"memory_gib": 8}},
        "models": {"fake": {"source": "./fake"}},
        "engines": {
            "chat": {
                "kind": "mock", "host": "here", "model": "fake", "device": "cpu", "context": 9, "concurrency": 1,
                "port": 9000,
            }
        },
        "roles": {name: {"model": "fake", "memory": sources} for name, sources in memory.items()},
        "assistant": {},
    }  # fmt: skip
    if search:
        site["roles"]["seeker"] = {"model": "fake", "search": True}  # type: ignore[index]
        site["search"] = {"url": "http://127.0.0.1:8888"}
    return AssistantChats(Site.model_validate_json(json.dumps(site)))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"model":"writer","messages":[]}', True),
        (b'{"messages":[{"role":"user","content":"writer"}],"model" : "writer"}', True),
        (b'{"model":"wr\\u0069ter","messages":[]}', True),
        (b'{"model":"writer","top_p":NaN}', True),
        (b'{"model":"fake","messages":[{"role":"user","content":"\\"writer\\""}]}', False),
        (b'{"model":"fake","x":"writer"}', False),
        (b'{"model":"plain"}', False),
        (b'{"model":"writers"}', False),
        (b'{"x":"writer"}', False),
        (b'"writer"', False),
    ],
)
def test_a_chat_names_a_role_with_memory_as_its_model_only(body: bytes, named: bool) -> None:
    assert chats(writer=["chats"], plain=[]).includes_chat(body) is named
    assert not chats(plain=[]).includes_chat(body)


@pytest.mark.parametrize(
    ("body", "included"),
    [
        (b'{"model":"seeker","messages":[]}', True),
        (b'{"model":"fake","web_search_options":{}}', True),
        (b'{"model":"fake","web\\u005fsearch_options":{"search_context_size":"low"}}', True),
        (b'{"model":"fake","web_search_options":null}', False),
        (b'{"model":"fake","messages":[{"role":"user","content":"\\"web_search_options\\":{}"}]}', False),
        (b'{"model":"fake","x":{"web_search_options":{}}}', False),
        (b'{"web_search_options":', False),
        (b'"web_search_options"', False),
    ],
)
def test_a_chat_with_web_search_needs_the_assistant_if_the_site_has_it(body: bytes, included: bool) -> None:
    assert chats(search=True).includes_chat(body) is included
    assert not chats(writer=["chats"]).includes_chat(body)


def test_a_response_of_a_role_with_web_search_needs_the_assistant() -> None:
    body = b'{"model":"seeker","input":"x","store":false}'
    assert chats(search=True).includes_response(body)
    assert not chats().includes_response(body)
    assert not chats(search=True, writer=["chats"]).includes_response(b'{"model":"writer","store":false}')
