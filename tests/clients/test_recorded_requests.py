"""The recorded requests of real clients with the mock engine; tests/vllm sends them to real vLLM."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.conftest import EMBEDDER, MODEL, SdkSite
from tests.clients.recorded import FILE, Recorded, ResponseShape, recorded, replay, shape, structure

REQUESTS = [request for request in recorded() if request.method == "POST"]

ON_PURPOSE = {
    "/v1/rerank": "the gateway names the tasks of the model, the engine has no such path",
}
"""Intended differences of bodies and their reasons; the status is the recorded one on both sides."""

CHANGED = {
    "n8n-tanth": "vLLM refused the noise of a model that had to call a tool",
}
"""Requests whose recorded status had another cause than the request; here both sides return 200."""


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_the_gateway_responds_as_the_engine_does(site: SdkSite, request_: Recorded) -> None:
    embeds = request_.path in ("/v1/embeddings", "/v1/rerank")
    model, engine = (EMBEDDER, site.embedder) if embeds else (MODEL, site.engine)
    ours = replay(request_, port=site.gateway.port, key=site.key, model=model)
    engines = replay(request_, port=engine.port, key="none", model=model)
    expected = 200 if request_.client in CHANGED else request_.status
    assert (ours.status, engines.status) == (expected, expected)
    if request_.path not in ON_PURPOSE:
        assert ours == engines


def test_the_comparison_detects_a_rejection_by_one_side(site: SdkSite) -> None:
    ours = replay(REQUESTS[0], port=site.gateway.port, key=site.key, model="Org/Other")
    engines = replay(REQUESTS[0], port=site.engine.port, key="none", model="Org/Other")
    assert (ours.status, engines.status) == (404, 404)
    assert ours != engines


def test_the_data_has_no_secret_address_or_path_of_a_machine() -> None:
    text = FILE.read_text()
    assert len(recorded()) == 66
    for schema in ("http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema"):
        text = text.replace(schema, "")
    for found in ("://", "sk-", "Bearer", "/home/", "/root/", "/tmp/", "@"):
        assert found not in text, found


STREAM: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 1}},
]


def streamed(frames: list[dict[str, Any]], end: str = "data: [DONE]\n\n", event: str = "") -> ResponseShape:
    body = "".join(f"{event}data: {json.dumps(frame)}\n\n" for frame in frames) + end
    return shape(200, "text/event-stream", body.encode())


def test_streams_with_other_texts_and_comments_have_one_shape() -> None:
    assert streamed([*STREAM[:2], *[STREAM[2]] * 3, *STREAM[3:]]) == streamed(STREAM)
    assert streamed(STREAM[:1] + STREAM[3:]).body == streamed(STREAM).body, "all text may be in the last frame"
    assert shape(200, "text/event-stream", b": waiting\n\n") == streamed([], end="")


@pytest.mark.parametrize(
    "other",
    [
        streamed(STREAM[1:]),
        streamed(STREAM[:-1]),
        streamed(STREAM[:3] + STREAM[4:]),
        streamed([*STREAM, STREAM[-1] | {"id": 1}]),
        streamed([STREAM[3], *STREAM]),
        streamed(STREAM, end=""),
        streamed(STREAM, event="event: message\n"),
        streamed([*STREAM, {"error": {"message": "m"}}]),
        streamed([STREAM[0], {"choices": [{"index": 0, "delta": {"text": "a"}}]}, *STREAM[3:]]),
    ],
)
def test_a_stream_with_another_sequence_has_another_shape(other: ResponseShape) -> None:
    assert other != streamed(STREAM)


@pytest.mark.parametrize(
    "other",
    [
        {"a": 1, "b": [{"c": "x"}], "d": None},
        {"a": "1", "b": [{"c": "x"}]},
        {"a": 1, "b": [{"c": None}]},
        {"a": 1, "b": []},
        {"a": 1, "b": [{"c": "x"}, {"c": "x", "e": 1}]},
        {"a": True, "b": [{"c": "x"}]},
        [{"a": 1, "b": [{"c": "x"}]}],
    ],
)
def test_a_body_with_other_keys_or_types_has_another_structure(other: Any) -> None:
    assert structure(other) != structure({"a": 1, "b": [{"c": "x"}]})
    assert structure({"b": [{"c": "y"}, {"c": "z"}], "a": 2.5}) == structure({"a": 1, "b": [{"c": "x"}]})
