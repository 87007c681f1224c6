"""Requests with state are recognised in every spelling that an engine accepts; all others stay at an engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.contract.model import Site
from appliance.gateway.stateful import MemoryRoles, is_stateful

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


def roles(**memory: list[str]) -> MemoryRoles:
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
    return MemoryRoles(Site.model_validate_json(json.dumps(site)))


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
    assert roles(writer=["chats"], plain=[]).named_in(body) is named
    assert not roles(plain=[]).names
