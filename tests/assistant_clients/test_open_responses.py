"""The thirteen scenarios of the Open Responses compliance suite, as requests of our own through the real gateway.

``python -m tests.assistant_clients.comply`` runs the suite itself, ``llm-comply``, if it is installed. It validates
the same responses against its copy of the specification.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.assistant_clients.site import MODEL, ServiceWithState

FIELDS = {
    "background", "completed_at", "created_at", "error", "frequency_penalty", "id",
    "incomplete_details", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model",
    "object", "output", "parallel_tool_calls", "presence_penalty", "previous_response_id",
    "prompt_cache_key", "reasoning", "safety_identifier", "service_tier", "status", "store",
    "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "usage",
}  # fmt: skip
"""The fields that the specification requires of every response."""
PIXEL = base64.b64encode(b"\xff\xd8\xff\xe0 not a whole picture").decode()
FAST = "fake: tokens=3 itl_ms=0 ttft_ms=0"


def message(text: str, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text, **more}


def create(service: ServiceWithState, status: str = "completed", **fields: Any) -> dict[str, Any]:
    """Return the response to a request that is not streamed, whose form is checked."""
    response = service.post("/v1/responses", {"model": MODEL, **fields})
    assert response.status == 200, response.body
    found: dict[str, Any] = response.json
    check(found, status)
    return found


def check(response: dict[str, Any], status: str = "completed") -> None:
    """Assert the form of a response that has ended."""
    assert FIELDS - response.keys() == set()
    assert (response["object"], response["status"], response["error"]) == ("response", status, None)
    assert response["id"].startswith("resp_")
    assert response["output"]
    for item in response["output"]:
        assert {"id", "type", "status"} <= item.keys()
    usage = response["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
    assert {"cached_tokens"} <= usage["input_tokens_details"].keys()
    assert {"reasoning_tokens"} <= usage["output_tokens_details"].keys()


def streamed(service: ServiceWithState, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a stream; their names and numbers are checked."""
    response = service.post("/v1/responses", {"model": MODEL, "stream": True, **fields})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.body.decode().strip().split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        if lines and lines != ["data: [DONE]"]:
            name, data = lines
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


INPUTS = {
    "a text": [message(FAST)],
    "a system prompt": [message("One word.", "developer"), message(FAST)],
    "several turns": [message("My name is Ada."), message("Hello Ada.", "assistant"), message(FAST)],
    "phases": [
        message("I look it up.", "assistant", phase="commentary"),
        message("The number is four.", "assistant", phase="final_answer"),
        message(FAST),
    ],
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_have_a_complete_response(stateful: ServiceWithState, name: str) -> None:
    made = create(stateful, input=INPUTS[name])
    [item] = made["output"]
    assert (item["role"], item["content"][0]["text"]) == ("assistant", "the quick brown")
    sent = json.loads(stateful.last()["body"])["messages"]
    # The engine gets every message once, the instructions as its first.
    assert [one["role"] for one in sent] == [
        {"developer": "system"}.get(one["role"], one["role"]) for one in INPUTS[name]
    ]


def test_the_phase_of_a_message_is_kept(stateful: ServiceWithState) -> None:
    made = create(stateful, input=INPUTS["phases"])
    listed = stateful.get(f"/v1/responses/{made['id']}/input_items?order=asc", key=stateful.key)
    assert listed.status == 200, listed.body
    stored = listed.json["data"]
    assert [item.get("phase") for item in stored] == ["commentary", "final_answer", None]


def test_an_image_reaches_the_engine(stateful: ServiceWithState) -> None:
    url = f"data:image/jpeg;base64,{PIXEL}"
    parts = [{"type": "input_text", "text": FAST}, {"type": "input_image", "image_url": url}]
    create(stateful, input=[{"type": "message", "role": "user", "content": parts}])
    [sent] = json.loads(stateful.last()["body"])["messages"]
    assert sent["content"][1] == {"type": "image_url", "image_url": {"url": url}}


def test_a_required_tool_is_called(stateful: ServiceWithState) -> None:
    parameters = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
    tool = {"type": "function", "name": "get_weather", "parameters": parameters}
    made = create(stateful, input=[message("weather?")], tools=[tool], tool_choice="required")
    [call] = made["output"]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == (
        "function_call",
        "get_weather",
        {"location": "Rome"},
    )
    assert call["call_id"]
    unforced = create(stateful, input=[message(FAST)], tools=[tool])
    assert unforced["output"][0]["type"] == "message"


def test_a_stream_has_its_events_in_order(stateful: ServiceWithState) -> None:
    events = streamed(stateful, input=[message(FAST)])
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    check(events[-1]["response"])


def test_the_last_event_of_a_stream_has_the_usage(stateful: ServiceWithState) -> None:
    final = streamed(stateful, input=[message(FAST)])[-1]["response"]
    assert final["usage"]["output_tokens"] == 3
    assert final["usage"]["input_tokens"] > 0


def test_reasoning_is_an_item_and_its_settings_are_repeated(stateful: ServiceWithState) -> None:
    reasoning = {"effort": "low", "summary": "auto"}
    made = create(stateful, input=[message(f"{FAST} think=2")], reasoning=reasoning)
    assert made["reasoning"] == reasoning
    assert [item["type"] for item in made["output"]] == ["reasoning", "message"]
    assert made["output"][0]["content"][0] == {"type": "reasoning_text", "text": "the quick"}
    assert json.loads(stateful.last()["body"])["reasoning_effort"] == "low"


def test_a_compaction_keeps_the_messages_of_the_user(stateful: ServiceWithState) -> None:
    turns = [message("We launch on Tuesday."), message("Understood.", "assistant")]
    response = stateful.post("/v1/responses/compact", {"model": MODEL, "prompt_cache_key": "k", "input": turns})
    assert response.status == 200
    assert response.json["object"] == "response.compaction"
    kept, compacted = response.json["output"]
    assert kept["content"][0]["text"] == "We launch on Tuesday."
    assert (compacted["type"], bool(compacted["encrypted_content"])) == ("compaction", True)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/compact"])
def test_a_request_without_a_model_is_refused(stateful: ServiceWithState, path: str) -> None:
    response = stateful.post(path, {"input": [message("x")]})
    assert response.status == 400
    error = response.json["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", "model")
