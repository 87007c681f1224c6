"""The client SDKs with the gateway: complete responses, and rejections that raise with the gateway's message.

Each pair of a client in ``table.py`` and a scenario is a test.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.clients.conftest import EMBEDDER, MODEL, Sdks, new_key, new_keys
from tests.clients.sdk import Call
from tests.clients.table import CLIENTS, WAYS, ClientSoftware, assert_problem, each_way, run, running, way_id, words
from tests.conftest import RunningService, usage_row, wait_until

SDKS = ["openai-py", "openai-node", "anthropic-py", "anthropic-node"]
"""The SDKs that can list models."""


@each_way
def test_a_response_is_complete(sdks: Sdks, site: RunningService, client: ClientSoftware, stream: bool) -> None:
    outcome = run(sdks, site, client, stream=stream, usage=True)
    assert outcome.problem is None
    assert (outcome.text, outcome.finish) == ("the quick brown fox", client.finish)
    assert outcome.usage
    assert outcome.usage[0] > 0
    assert outcome.usage[1] == 4


@pytest.mark.parametrize("client", [client for client in CLIENTS if client.usage_on_request], ids=str)
def test_a_stream_has_no_usage_unless_requested(sdks: Sdks, site: RunningService, client: ClientSoftware) -> None:
    outcome = run(sdks, site, client, stream=True)
    assert (outcome.text, outcome.usage) == ("the quick brown fox", None)


@pytest.mark.parametrize(("client", "stream"), [way for way in WAYS if way[0].tool_finish], ids=way_id)
def test_a_tool_call_is_complete(sdks: Sdks, site: RunningService, client: ClientSoftware, stream: bool) -> None:
    outcome = run(sdks, site, client, "fake: tool=1", stream=stream, tool=True)
    assert outcome.problem is None
    assert [(name, json.loads(arguments)) for name, arguments in outcome.calls] == [("weather", {"place": "Rome"})]
    assert outcome.finish == client.tool_finish


@each_way
def test_the_request_id_of_a_response_is_readable(
    sdks: Sdks, site: RunningService, client: ClientSoftware, stream: bool
) -> None:
    outcome = run(sdks, site, client, stream=stream)
    assert outcome.request_id
    assert usage_row(site.data, outcome.request_id)


@pytest.mark.parametrize("sdk", SDKS)
def test_models_are_listed_and_a_name_with_a_slash_is_found(sdks: Sdks, site: RunningService, sdk: str) -> None:
    listed = sdks[sdk].run(Call(api="models", url=site.url, key=site.key, model=""), lambda: None)
    assert (listed.problem, listed.models) == (None, [MODEL, EMBEDDER])
    found = sdks[sdk].run(Call(api="model", url=site.url, key=site.key, model=MODEL), lambda: None)
    assert (found.problem, found.models) == (None, [MODEL])
    assert found.request_id


@pytest.mark.parametrize("sdk", SDKS)
def test_a_model_that_does_not_exist_is_not_found(sdks: Sdks, site: RunningService, sdk: str) -> None:
    outcome = sdks[sdk].run(Call(api="model", url=site.url, key=site.key, model="Org/Other"), lambda: None)
    assert outcome.problem
    assert (outcome.problem.name, outcome.problem.status) == ("NotFoundError", 404)
    assert "`Org/Other`" in words(outcome), "the name as the user wrote it"


@pytest.mark.parametrize("sdk", ["openai-py", "openai-node", "vercel"])
def test_embeddings_are_complete(sdks: Sdks, site: RunningService, sdk: str) -> None:
    outcome = sdks[sdk].run(
        Call(api="embeddings", url=site.url, key=site.key, model=EMBEDDER, text="four"), lambda: None
    )
    assert outcome.problem is None
    assert json.loads(outcome.text) == [0.04, 0.5, -0.5, 0.25]
    assert outcome.request_id


@pytest.mark.parametrize("sdk", ["anthropic-py", "anthropic-node"])
def test_tokens_are_counted(sdks: Sdks, site: RunningService, sdk: str) -> None:
    outcome = sdks[sdk].run(Call(api="count_tokens", url=site.url, key=site.key, model=MODEL), lambda: None)
    assert outcome.problem is None
    assert outcome.usage
    assert outcome.usage[0] > 0
    assert outcome.request_id


@pytest.mark.parametrize("sdk", ["openai-py", "openai-node"])
def test_a_path_that_does_not_exist_is_a_readable_404(sdks: Sdks, site: RunningService, sdk: str) -> None:
    outcome = sdks[sdk].run(Call(api="files", url=site.url, key=site.key, model=MODEL), lambda: None)
    assert outcome.problem
    assert outcome.problem.status == 404
    assert "/v1/files" in words(outcome)


# Rejections before the response.


@dataclass(frozen=True)
class Rejection:
    """A request that is rejected, and the exception of every client."""

    name: str
    call: dict[str, Any]
    status: int
    words: str
    openai: tuple[str, str]
    """``error.type`` and ``error.code`` in OpenAI's shape."""
    anthropic: str
    """``error.type`` in Anthropic's shape."""


REJECTIONS = [
    Rejection(
        name="bad-key",
        call={"key": "sk-bad"},
        status=401,
        words="API key is not valid",
        openai=("invalid_request_error", "invalid_api_key"),
        anthropic="authentication_error",
    ),
    Rejection(
        name="no-such-model",
        call={"model": "Org/Other"},
        status=404,
        words="`Org/Other`",
        openai=("invalid_request_error", "model_not_found"),
        anthropic="not_found_error",
    ),
    Rejection(
        name="model-of-another-task",
        call={"model": EMBEDDER},
        status=404,
        words=EMBEDDER,
        openai=("invalid_request_error", "model_not_found"),
        anthropic="not_found_error",
    ),
    Rejection(
        name="over-the-context",
        call={"max_tokens": 5000},
        status=400,
        words="5000; it must be from",
        openai=("invalid_request_error", "invalid_request"),
        anthropic="invalid_request_error",
    ),
    Rejection(
        name="rejected-by-the-engine",
        call={"text": "fake: fault=status:400"},
        status=400,
        words="as requested",
        openai=("fake", "400"),
        anthropic="invalid_request_error",
    ),
]


@pytest.mark.parametrize("rejection", REJECTIONS, ids=lambda rejection: rejection.name)
@each_way
def test_a_rejection_raises_with_its_message(
    sdks: Sdks, site: RunningService, client: ClientSoftware, stream: bool, rejection: Rejection
) -> None:
    outcome = run(sdks, site, client, stream=stream, **rejection.call)
    assert outcome.text == ""
    assert_problem(
        client,
        outcome,
        status=rejection.status,
        text=rejection.words,
        openai=rejection.openai,
        anthropic=rejection.anthropic,
    )
    assert outcome.problem
    assert outcome.problem.request_id, "an operator finds the request by its id"


@pytest.fixture(scope="module")
def spent(site: RunningService) -> str:
    """Return a key that has used its only request of this minute."""
    key = new_key(site, "spender", requests_per_minute=1)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    assert site.post("/v1/chat/completions", body, key).status == 200
    return key


@each_way
def test_a_limit_raises_with_the_time_to_wait(
    sdks: Sdks, site: RunningService, spent: str, client: ClientSoftware, stream: bool
) -> None:
    outcome = run(sdks, site, client, stream=stream, key=spent)
    kind = "rate_limit_error"
    assert_problem(
        client,
        outcome,
        status=429,
        text="requests per minute",
        openai=(kind, "rate_limit_exceeded"),
        anthropic=kind,
    )
    assert outcome.problem
    assert 1 <= int(outcome.problem.retry_after or 0) <= 60


def test_every_sdk_waits_for_the_time_of_retry_after(sdks: Sdks, site: RunningService) -> None:
    """The next request is accepted after about two seconds: one rejection, then the response."""
    clients = [client for client in running(sdks) if client.api in ("chat", "messages")]
    keys = dict(zip(clients, new_keys(site, [f"retry.{c}" for c in clients], tokens_per_minute=600), strict=True))
    for key in keys.values():
        body = {"model": MODEL, "max_tokens": 610, "messages": [{"role": "user", "content": "fake: tokens=610"}]}
        assert site.post("/v1/chat/completions", body, key).status == 200
    with ThreadPoolExecutor(len(clients)) as pool:
        outcomes = pool.map(lambda client: run(sdks, site, client, key=keys[client], retries=3), clients)
    for client, outcome in zip(clients, outcomes, strict=True):
        assert (outcome.problem, outcome.text) == (None, "the quick brown fox"), client
        wait_until(partial(three_rows, site, client), "its three usage rows", 5)
        assert retried(site, client) == ["ok", "limited", "ok"], client


def retried(service: RunningService, client: ClientSoftware) -> list[str]:
    return [row["outcome"] for row in service.rows() if row["user"] == f"retry.{client}"]


def three_rows(service: RunningService, client: ClientSoftware) -> bool:
    return len(retried(service, client)) >= 3
