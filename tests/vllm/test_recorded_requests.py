"""The recorded requests of real clients: through the gateway they get what real vLLM answers them directly."""

from __future__ import annotations

import pytest

from tests.clients.recorded import Recorded, ResponseShape, recorded, replay, without
from tests.vllm.conftest import Up

pytestmark = pytest.mark.vllm

TASKS = ("/v1/embeddings", "/v1/rerank")
"""Paths that the generating model does not serve; tests/clients replays them before the mock engine."""

REQUESTS = [request for request in recorded() if request.path not in TASKS]

ON_PURPOSE = {
    "GET /health": "the gateway answers JSON, vLLM an empty body",
    "GET /metrics": "the gateway has metrics of its own",
    "HEAD /metrics": "the same, without a body",
    "GET /v1/models": "the gateway lists models and roles, without vLLM's permissions",
    "GET /v1/models/Qwen/Qwen3-tiny": "vLLM has no such path",
}
"""Where the responses differ on purpose, and why; only the gateway's status is compared, to 200."""

LOST = "system_fingerprint"
"""vLLM writes it into the last frame only, which the gateway takes out if only the gateway wants the usage."""

ATTEMPTS = 3
"""vLLM joins the tokens of a stream that it generates faster than it sends; then a frame may be missing."""


def both(request: Recorded, up: Up, model: str) -> tuple[ResponseShape, ResponseShape]:
    """The shapes of the gateway's response and of the engine's."""
    for _ in range(ATTEMPTS):
        ours = replay(request, up.port, up.key, model)
        engines = replay(request, up.engine_port, up.key, model)
        if ours == engines:
            break
    return ours, engines


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_the_gateway_answers_as_the_engine_does(up: Up, model: str, request_: Recorded) -> None:
    if f"{request_.method} {request_.path}" in ON_PURPOSE:
        assert replay(request_, up.port, up.key, model).status == 200
        return
    ours, engines = both(request_, up, model)
    if request_.body and request_.body.get("stream") and "stream_options" not in request_.body:
        ours, engines = without(ours, LOST), without(engines, LOST)
    assert ours.status == 200, "a recorded client works with this request"
    assert (ours.status, ours.kind, ours.body) == (engines.status, engines.kind, engines.body)
    if ours.texts and engines.texts:
        assert ours.texts == engines.texts


@pytest.mark.parametrize("client", ["claude2", "qwen2"])
def test_more_tokens_than_the_context_are_reduced_where_the_engine_alone_rejects_them(
    up: Up, model: str, client: str
) -> None:
    """Claude Code and qwen-code ask for 32,000 tokens in every request, whatever the model has."""
    request = next(r for r in REQUESTS if r.client == client)
    assert replay(request, up.port, up.key, model, limit=32000).status == 200
    assert replay(request, up.engine_port, up.key, model, limit=32000).status == 400
