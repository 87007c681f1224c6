"""Calls of tools that the mock engine makes if ``tool_choice`` requires one, in each API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from appliance.engines.mock import example
from tests.conftest import StartedProcess, http, start_mock

SCHEMA = {
    "type": "object",
    "properties": {
        "place": {"type": "string", "minLength": 9},
        "days": {"type": "integer", "minimum": 2},
        "units": {"enum": ["c", "f"]},
        "exact": {"type": "boolean"},
        "spans": {"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/span"}},
        "either": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "free": {"type": "string"},
    },
    "required": ["place", "days", "units", "exact", "spans", "either"],
    "additionalProperties": False,
    "$defs": {
        "span": {
            "allOf": [
                {"type": "object", "properties": {"from": {"type": "number", "exclusiveMinimum": 3}}},
                {"properties": {"kind": {"const": "day"}}, "required": ["from", "kind"]},
            ]
        }
    },
}
TOOLS = [("first", {"type": "object"}), ("plan", SCHEMA)]
FUNCTIONS = [{"type": "function", "function": {"name": name, "parameters": one}} for name, one in TOOLS]


def test_an_example_fits_its_schema() -> None:
    found = example(SCHEMA, SCHEMA)
    jsonschema.validate(found, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"place": "Rome"}, SCHEMA)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedProcess]:
    started = start_mock(tmp_path_factory.mktemp("mock") / "log")
    yield started
    started.stop()


def call_of(engine: StartedProcess, path: str, body: dict[str, Any]) -> tuple[str, Any]:
    """Return the name and the arguments of the call in the response; the name is empty for a text."""
    body = {"model": "fake", "max_tokens": 99, **body}
    response = http(engine.url + path, body=body).json
    if path == "/v1/chat/completions":
        calls = response["choices"][0]["message"].get("tool_calls")
        function = calls[0]["function"] if calls else {"name": "", "arguments": "{}"}
        return function["name"], json.loads(function["arguments"])
    if path == "/v1/responses":
        [item] = response["output"]
        return item.get("name", ""), json.loads(item.get("arguments", "{}"))
    [block] = response["content"]
    return block.get("name", ""), block.get("input")


CHAT = {"messages": [{"role": "user", "content": "hi"}], "tools": FUNCTIONS}
INPUT = {"input": "hi", "tools": [{"type": "function", "name": name, "parameters": one} for name, one in TOOLS]}
MESSAGES = {"messages": CHAT["messages"], "tools": [{"name": name, "input_schema": one} for name, one in TOOLS]}


@pytest.mark.parametrize(
    ("path", "body", "choice", "name"),
    [
        ("/v1/chat/completions", CHAT, "required", "first"),
        ("/v1/chat/completions", CHAT, {"type": "function", "function": {"name": "plan"}}, "plan"),
        ("/v1/chat/completions", CHAT, "auto", ""),
        ("/v1/chat/completions", CHAT, None, ""),
        ("/v1/chat/completions", {**CHAT, "tools": []}, "required", ""),
        ("/v1/responses", INPUT, "required", "first"),
        ("/v1/responses", INPUT, {"type": "function", "name": "plan"}, "plan"),
        ("/v1/responses", INPUT, "none", ""),
        ("/v1/messages", MESSAGES, {"type": "any"}, "first"),
        ("/v1/messages", MESSAGES, {"type": "tool", "name": "plan"}, "plan"),
        ("/v1/messages", MESSAGES, {"type": "auto"}, ""),
    ],
)
def test_a_required_tool_is_called(
    engine: StartedProcess, path: str, body: dict[str, Any], choice: object, name: str
) -> None:
    found, arguments = call_of(engine, path, {**body, "tool_choice": choice})
    assert found == name
    if name == "plan":
        jsonschema.validate(arguments, SCHEMA)


def test_a_directive_calls_the_first_tool(engine: StartedProcess) -> None:
    asked = {**CHAT, "messages": [{"role": "user", "content": "fake: tool=1"}]}
    assert call_of(engine, "/v1/chat/completions", asked) == ("first", {"place": "Rome"})
