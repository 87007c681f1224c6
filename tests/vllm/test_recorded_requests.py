"""The recorded requests of real clients: the gateway's responses are those of real vLLM."""

from __future__ import annotations

import pytest

from tests.clients.recorded import Recorded, ResponseShape, recorded, replay, status_of, without
from tests.up_process import Up

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

TASKS = ("/v1/embeddings", "/v1/rerank")
"""Paths that the generating model does not serve; tests/clients replays them before the mock engine."""

REQUESTS = [request for request in recorded() if request.path not in TASKS]

ON_PURPOSE = {
    "GET /health": "the gateway returns JSON, vLLM an empty body",
    "GET /metrics": "the gateway has metrics of its own",
    "HEAD /metrics": "the same, without a body",
    "GET /v1/models": "the gateway lists models and roles, without vLLM's permissions",
    "GET /v1/models/Qwen/Qwen3-tiny": "vLLM has no such path",
}
"""Intended differences and their reasons; only the gateway's status is compared, to 200."""

LOST = "system_fingerprint"
"""vLLM writes it into the last frame only, which the gateway removes if only the gateway needs the usage."""

ATTEMPTS = 3
"""vLLM joins the tokens of a stream that it generates faster than it sends; then a frame may be missing."""


def both(request: Recorded, up: Up, model: str) -> tuple[ResponseShape, ResponseShape]:
    """Return the shapes of the gateway's response and of the engine's."""
    for _ in range(ATTEMPTS):
        ours = replay(request, port=up.port, key=up.key, model=model)
        engines = replay(request, port=up.engine_port, key=up.key, model=model)
        if ours == engines:
            break
    return ours, engines


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_the_gateway_responds_as_the_engine_does(up: Up, model: str, request_: Recorded) -> None:
    if f"{request_.method} {request_.path}" in ON_PURPOSE:
        assert replay(request_, port=up.port, key=up.key, model=model).status == 200
        return
    ours, engines = both(request_, up, model)
    if request_.body and request_.body.get("stream") and "stream_options" not in request_.body:
        ours, engines = without(ours, LOST), without(engines, LOST)
    assert ours.status == 200, "a recorded client works with this request"
    assert (ours.status, ours.kind, ours.body) == (engines.status, engines.kind, engines.body)
    if ours.texts and engines.texts:
        assert ours.texts == engines.texts


@pytest.mark.parametrize("client", ["claude2", "qwen2"])
def test_more_tokens_than_the_context_are_reduced_although_the_engine_rejects_them(
    up: Up, model: str, client: str
) -> None:
    """Claude Code and qwen-code request 32,000 tokens in every request, from every model."""
    request = next(r for r in REQUESTS if r.client == client)
    # The head of the stream is enough: its thousands of tokens take minutes on a busy machine.
    assert request.body is not None
    assert request.body["stream"]
    assert status_of(request, port=up.port, key=up.key, model=model, limit=32000) == 200
    assert status_of(request, port=up.engine_port, key=up.key, model=model, limit=32000) == 400
