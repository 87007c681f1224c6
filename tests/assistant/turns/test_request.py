"""Each field of a request that cannot be served is a 400 with its name."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.assistant.turns.request import KNOWN, read_turn
from appliance.errors import InvalidRequestError

FUNCTION = {"type": "function", "name": "weather", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], "body"),
        ({"input": "x", "frobnicate": 1}, "frobnicate"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"name": "x"}}, "conversation.id"),
        ({"conversation": 5}, "conversation"),
        ({"background": True, "store": False}, "background"),
        ({"background": "yes"}, "background"),
        ({"input": 5}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": {}, "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": {}}]}, "input[0].type"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": {}}}, "tool_choice"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
        ({"input": [{"type": "function_call", "name": "x", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [5]}]}, "input[0].output[0]"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"metadata": {"k": 5}}, "metadata.k"),
        ({"tools": "x"}, "tools"),
        ({"tools": [FUNCTION, {"type": "code_interpreter"}]}, "tools[1].type"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
        ({"tools": [{"type": "tool_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools"),
        ({"tools": [{"type": "file_search"}]}, "tools[0].vector_store_ids"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].vector_store_ids"),
        *(
            ({"tools": [{"type": "file_search", "vector_store_ids": ["v"], "max_num_results": n}]}, where)
            for n, where in ((0, "tools[0].max_num_results"), (51, "tools[0].max_num_results"))
        ),
        (
            {
                "tools": [
                    {"type": "file_search", "vector_store_ids": ["v"], "ranking_options": {"score_threshold": 2}}
                ]
            },
            "tools[0].ranking_options.score_threshold",
        ),
        (
            {
                "tools": [
                    {"type": "file_search", "vector_store_ids": ["v"]},
                    {"type": "function", "name": "file_search"},
                ]
            },
            "tools",
        ),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "absent"}}, "tool_choice"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"include": "x"}, "include"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": "high"}, "top_p"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tool_calls": True}, "max_tool_calls"),
        ({"truncation": "some"}, "truncation"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
    ],
)
def test_an_invalid_field_is_named(body: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        read_turn(body)
    assert raised.value.status == 400
    assert raised.value.param == param


def test_a_text_is_a_message_of_the_user() -> None:
    [item] = read_turn({"input": "hi"}).items
    assert item["role"] == "user"
    assert item["content"] == [{"type": "input_text", "text": "hi"}]


def test_the_requests_of_codex_are_served_without_its_own_tools() -> None:
    agents = {"type": "namespace", "name": "agents", "tools": [FUNCTION]}
    tools = [agents, {"type": "web_search", "external_web_access": True}, FUNCTION]
    request = read_turn({"input": "x", "store": False, "client_metadata": {"turn_id": "t"}, "tools": tools})
    assert request.removed == ("namespace", "web_search")
    assert [tool["function"]["name"] for tool in request.functions] == ["weather"]
    assert "client_metadata" not in {**request.shown, **request.engine_fields}


def test_only_web_search_is_removed_and_that_is_announced() -> None:
    request = read_turn({"input": "x", "tools": [{"type": "web_search_preview"}, FUNCTION]})
    assert request.removed == ("web_search_preview",)
    assert [tool["function"]["name"] for tool in request.functions] == ["weather"]
    assert request.shown["tools"] == [{**FUNCTION, "description": None, "strict": None}]


def test_fields_of_the_engine_pass_in_its_own_form() -> None:
    schema = {"type": "json_schema", "name": "city", "schema": {"type": "object"}, "strict": True}
    request = read_turn(
        {
            "input": "x",
            "temperature": 0.2,
            "top_k": 20,
            "reasoning": {"effort": "low"},
            "text": {"format": schema},
            "tools": [FUNCTION],
            "tool_choice": {"type": "function", "name": "weather"},
        }
    )
    assert request.engine_fields == {
        "temperature": 0.2,
        "top_k": 20,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": {"type": "object"}, "strict": True},
        },
    }
    assert request.choice == {"type": "function", "function": {"name": "weather"}}


def test_allowed_tools_limit_the_tools() -> None:
    tools = [FUNCTION, {"type": "function", "name": "news"}, {"type": "file_search", "vector_store_ids": ["v"]}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "news"}]}
    request = read_turn({"input": "x", "tools": tools, "tool_choice": choice})
    assert [tool["function"]["name"] for tool in request.functions] == ["news"]
    assert request.search is None
    assert request.choice == "required"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "name", "content", "mode", "tools", "id"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
CHOICES = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "allowed_tools", "file_search"])},
    optional={"name": JSON_VALUES, "mode": st.just("auto") | JSON_VALUES, "tools": JSON_VALUES},
)
ITEMS = st.fixed_dictionaries({}, optional={"type": JSON_VALUES, "role": JSON_VALUES, "content": JSON_VALUES})


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(st.sampled_from(sorted(KNOWN)), JSON_VALUES, max_size=4),
    CHOICES | JSON_VALUES,
    ITEMS | JSON_VALUES,
)
def test_any_json_is_a_request_or_an_invalid_one(body: dict[str, object], choice: object, item: object) -> None:
    for whole in (body, {"tools": [FUNCTION], "tool_choice": choice}, {"input": [item]}):
        # Every other exception fails the test.
        with suppress(InvalidRequestError):
            read_turn(whole)
