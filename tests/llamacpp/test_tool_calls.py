"""Calls of tools, parsed by a real llama.cpp server: they reach the client through the gateway as ``tool_calls``.

The tiny model begins a call after each line feed. The rest of the call is random text within the grammar that the
server makes of its chat template and the schema of the tool.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Response, RunningService, http
from tests.llamacpp.conftest import real_engine, real_service
from tests.llamacpp.server_command import program
from tests.llamacpp.tiny_gguf import write_tiny

ENOUGH = 400
"""Tokens for one call: its name, its arguments and white space between them."""


def tool(name: str, parameters: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def of_zones(*zones: str) -> dict[str, Any]:
    """The schema of an object whose only field is one of ``zones``."""
    properties = {"zone": {"enum": zones}}
    return {"type": "object", "properties": properties, "required": ["zone"], "additionalProperties": False}


CLOCK = tool("now", of_zones("UTC", "CET"))
WEATHER = tool("weather", of_zones("north", "south"))


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A gateway whose only model calls tools."""
    folder = tmp_path_factory.mktemp("caller")
    file = write_tiny(folder / "caller.gguf", "caller")
    engines = {"caller": real_engine("caller", program(folder), context=2048)}
    with real_service(folder / "gateway", {"caller": {"source": str(file)}}, engines) as service:
        yield service


def ask(service: RunningService, *tools: dict[str, Any], tokens: int = ENOUGH, **more: Any) -> Response:
    """Send a chat with ``tools``; the grammar makes each token slow on a busy machine."""
    body = {"model": "caller", "messages": [{"role": "user", "content": "hi"}], "tools": tools, "temperature": 0}
    path = "/v1/chat/completions"
    return http(service.url + path, body=body | {"max_tokens": tokens} | more, key=service.key, timeout=180)


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_a_call_is_parsed_and_has_the_arguments_of_its_schema(caller: RunningService, choice: str) -> None:
    response = ask(caller, CLOCK, tool_choice=choice)
    assert response.status == 200, response.body
    (reply,) = response.json["choices"]
    assert reply["finish_reason"] == "tool_calls"
    assert not reply["message"]["content"]
    (call,) = reply["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["id"]
    assert call["function"]["name"] == "now"
    assert json.loads(call["function"]["arguments"]) in ({"zone": "UTC"}, {"zone": "CET"})
    assert caller.row(response)["outcome"] == "ok"


def test_the_pieces_of_a_streamed_call_are_those_of_the_whole_one(caller: RunningService) -> None:
    whole = ask(caller, CLOCK, tool_choice="required").json["choices"][0]["message"]["tool_calls"][0]["function"]
    response = ask(caller, CLOCK, tool_choice="required", stream=True)
    events = [event.removeprefix(b"data: ") for event in response.body.split(b"\n\n") if event]
    assert events[-1] == b"[DONE]"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    pieces = [piece for choice in choices for piece in choice["delta"].get("tool_calls", [])]
    assert [piece["function"]["name"] for piece in pieces if "name" in piece["function"]] == [whole["name"]]
    assert [piece["id"] for piece in pieces if "id" in piece] == [pieces[0]["id"]]
    assert {piece["index"] for piece in pieces} == {0}
    assert len(pieces) > 1, "the arguments arrive as they are generated"
    assert "".join(piece["function"].get("arguments", "") for piece in pieces) == whole["arguments"]
    assert not any(choice["delta"].get("content") for choice in choices)
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_a_named_tool_is_the_one_that_is_called(caller: RunningService) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    response = ask(caller, WEATHER, tool_choice=choice)
    (call,) = response.json["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["zone"] in ("north", "south")


def test_control_without_a_tool_the_same_text_is_content(caller: RunningService) -> None:
    for offered, choice in (([CLOCK], "none"), ([], None)):
        response = ask(caller, *offered, tokens=8, **({"tool_choice": choice} if choice else {}))
        message = response.json["choices"][0]["message"]
        assert message["content"].startswith("<tool_call>")
        assert "tool_calls" not in message


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"type": "strange"}, "unrecognized type strange"),
        ({"type": "object", "properties": {"zone": {"$ref": "#/nowhere"}}, "required": ["zone"]}, "#/nowhere"),
        ("no schema", "schema must be an object"),
    ],
)
def test_a_malformed_schema_is_a_400_with_the_reason_and_the_engine_serves_on(
    caller: RunningService, parameters: object, reason: str
) -> None:
    for stream in (False, True):
        refused = ask(caller, tool("now", parameters), tool_choice="required", stream=stream)
        assert refused.status == 400
        assert reason in refused.json["error"]["message"]
    assert ask(caller, tokens=1).status == 200
