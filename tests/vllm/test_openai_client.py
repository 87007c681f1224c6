"""The openai client with `make up` on real vLLM: the requests of n8n, editors and note tools."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.conftest import usage_row, wait_until
from tests.up_process import Up
from tests.vllm.conftest import STREAM_TOKENS, running_stream

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Rome", "Oslo"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}


def test_make_up_reports_what_it_runs(up: Up) -> None:
    assert "TINY RANDOM MODEL" in up.output
    assert "the generated text is noise" in up.output
    assert "starting vLLM on the CPU" in up.output
    assert "PASS: every SLO holds" in up.output


def test_list_models(client: OpenAI, model: str) -> None:
    assert [card.id for card in client.models.list()] == [model, "writer"]
    assert client.models.retrieve(model).id == model


def test_chat(client: OpenAI, model: str) -> None:
    response = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Hello!"}], max_tokens=12, temperature=0
    )
    assert response.choices[0].message.content
    assert response.choices[0].finish_reason == "length"
    assert response.usage
    assert response.usage.completion_tokens == 12


def test_streaming_chat_and_its_usage_row(client: OpenAI, up: Up, model: str) -> None:

    def rows() -> list[dict[str, Any]]:
        return [row for row in up.rows() if row["stream"] and row["user"] == "me"]

    before = len(rows())
    chunks = list(
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Hello!"}], max_tokens=12, temperature=0, stream=True
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert all(chunk.choices for chunk in chunks), "the usage frame that only the gateway requested is removed"
    assert chunks[-1].choices[0].finish_reason == "length"
    wait_until(lambda: len(rows()) > before, "the usage row", 5)
    row = rows()[-1]
    assert (row["outcome"], row["completion_tokens"], row["estimated"], row["user"]) == ("ok", 12, 0, "me")
    assert row["prompt_tokens"] > 5
    assert 0 < row["ttft_ms"] <= row["duration_ms"]


def test_streaming_with_requested_usage(client: OpenAI, model: str) -> None:
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Hello!"}],
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 5


def test_tool_definitions(client: OpenAI, model: str) -> None:
    request: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
        "tools": [WEATHER],
        "max_tokens": 64,
    }
    message = client.chat.completions.create(**request).choices[0].message
    assert message.content or message.tool_calls
    named = {"type": "function", "function": {"name": "weather"}}
    message = client.chat.completions.create(**{**request, "tool_choice": named}).choices[0].message
    assert message.tool_calls
    # The arguments of the call are random, as the model is.
    assert [call.function.name for call in message.tool_calls] == ["weather"]
    messages = request["messages"] + [
        {"role": "assistant", "tool_calls": [call.model_dump() for call in message.tool_calls]},
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"},
    ]
    assert client.chat.completions.create(**{**request, "messages": messages}).choices


def test_json_mode(client: OpenAI, model: str) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    response = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Reply in JSON."}],
        response_format={"type": "json_schema", "json_schema": {"name": "result", "schema": schema}},
        max_tokens=64,
    )
    assert isinstance(json.loads(response.choices[0].message.content or "")["ok"], bool)
    response = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Reply in JSON."}],
        response_format={"type": "json_object"},
        max_tokens=16,
    )
    assert (response.choices[0].message.content or "").lstrip().startswith("{")


def test_legacy_completions(client: OpenAI, model: str) -> None:
    response = client.completions.create(model=model, prompt="A river", max_tokens=6, temperature=0)
    assert response.choices[0].text
    streamed = client.completions.create(model=model, prompt="A river", max_tokens=6, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == response.choices[0].text


def test_responses(client: OpenAI, up: Up, model: str) -> None:

    def rows() -> list[dict[str, Any]]:
        return [row for row in up.rows() if row["endpoint"] == "/v1/responses"]

    before = len(rows())
    response = client.responses.create(model=model, input="Hello!", max_output_tokens=8)
    assert response.output_text
    events = list(client.responses.create(model=model, input="Hello!", max_output_tokens=8, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")
    wait_until(lambda: len(rows()) == before + 2, "both rows", 5)
    assert response.usage
    first, second = rows()[before:]
    assert (first["outcome"], first["completion_tokens"]) == ("ok", response.usage.output_tokens)
    assert (second["outcome"], second["estimated"]) == ("ok", 0)
    assert 1 <= second["completion_tokens"] <= 8


def test_a_role(client: OpenAI) -> None:
    response = client.chat.completions.create(
        model="writer",
        messages=[{"role": "system", "content": "Verse."}, {"role": "user", "content": "x"}],
        max_tokens=4,
    )
    assert response.choices[0].message.content


def test_an_invalid_key(up: Up, model: str) -> None:
    with OpenAI(base_url=f"{up.url}/v1", api_key="sk-invalid", max_retries=0) as unauthorized:
        with pytest.raises(openai.AuthenticationError) as caught:
            unauthorized.models.list()
        assert caught.value.code == "invalid_api_key"


def test_an_unknown_model(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"


def test_embeddings_need_an_embedding_model(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match="does not serve /v1/embeddings"):
        client.embeddings.create(model=model, input="x")


@pytest.mark.parametrize("bad", [{"max_tokens": -1}, {"temperature": 9}, {"messages": []}, {"n": 10**9}])
def test_the_engine_rejects_an_invalid_request_and_runs_on(
    client: OpenAI, model: str, bad: dict[str, object]
) -> None:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2, **bad}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**body)
    assert client.models.list()


def disconnected(client: OpenAI, up: Up, model: str) -> dict[str, Any]:
    """Disconnect from a running stream, and return its row.

    vLLM's metrics are later than its core: the stream may have been complete. All its tokens in the row show that,
    and only then another stream is tried.
    """
    for _ in range(5):
        stream = running_stream(client, up, model)
        # By its own row: those of streams that ended too early may be written meanwhile.
        request_id = stream.response.headers["x-request-id"]
        stream.close()
        row = usage_row(up.data, request_id, 10)
        if row["outcome"] != "ok":
            return row
        assert row["completion_tokens"] == STREAM_TOKENS, row
    pytest.fail("five streams in a row were complete before the client had disconnected")


def test_a_client_that_disconnects_frees_the_engine(client: OpenAI, up: Up, model: str) -> None:
    assert disconnected(client, up, model)["outcome"] == "aborted"
    wait_until(lambda: up.engine_metric("vllm:num_requests_running") == 0, "the engine stops generating", 10)
