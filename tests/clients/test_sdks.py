"""The client SDKs against the gateway: answers arrive whole, and a refusal is raised with the gateway's message.

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
from tests.conftest import RunningService, wait_until

SDKS = ["openai-py", "openai-node", "anthropic-py", "anthropic-node"]
"""Those with calls for models."""


@each_way
def test_an_answer_arrives_whole(sdks: Sdks, site: RunningService, client: ClientSoftware, stream: bool) -> None:
    outcome = run(sdks, site, client, stream=stream, usage=True)
    assert outcome.problem is None
    assert (outcome.text, outcome.finish) == ("the quick brown fox", client.finish)
    assert outcome.usage
    assert outcome.usage[0] > 0
    assert outcome.usage[1] == 4


@pytest.mark.parametrize("client", [client for client in CLIENTS if client.usage_is_asked_for], ids=str)
def test_a_stream_has_no_usage_unless_requested(sdks: Sdks, site: RunningService, client: ClientSoftware) -> None:
    outcome = run(sdks, site, client, stream=True)
    assert (outcome.text, outcome.usage) == ("the quick brown fox", None)


@pytest.mark.parametrize(("client", "stream"), [way for way in WAYS if way[0].tool_finish], ids=way_id)
def test_a_tool_call_arrives_whole(sdks: Sdks, site: RunningService, client: ClientSoftware, stream: bool) -> None:
    outcome = run(sdks, site, client, "fake: tool=1", stream=stream, tool=True)
    assert outcome.problem is None
    assert [(name, json.loads(arguments)) for name, arguments in outcome.calls] == [("weather", {"place": "Rome"})]
    assert outcome.finish == client.tool_finish


@each_way
def test_the_request_id_of_an_answer_is_readable(
    sdks: Sdks, site: RunningService, client: ClientSoftware, stream: bool
) -> None:
    outcome = run(sdks, site, client, stream=stream)
    assert outcome.request_id
    wait_until(lambda: any(r["request_id"] == outcome.request_id for r in site.rows()), "its usage row", 5)


@pytest.mark.parametrize("sdk", SDKS)
def test_models_are_listed_and_a_name_with_a_slash_is_found(sdks: Sdks, site: RunningService, sdk: str) -> None:
    listed = sdks[sdk].run(Call("models", site.url, site.key, ""), lambda: None)
    assert (listed.problem, listed.models) == (None, [MODEL, EMBEDDER])
    found = sdks[sdk].run(Call("model", site.url, site.key, MODEL), lambda: None)
    assert (found.problem, found.models) == (None, [MODEL])
    assert found.request_id


@pytest.mark.parametrize("sdk", SDKS)
def test_a_model_that_does_not_exist_is_not_found(sdks: Sdks, site: RunningService, sdk: str) -> None:
    outcome = sdks[sdk].run(Call("model", site.url, site.key, "Org/Other"), lambda: None)
    assert outcome.problem
    assert (outcome.problem.name, outcome.problem.status) == ("NotFoundError", 404)
    assert "`Org/Other`" in words(outcome), "the name as the user wrote it"


@pytest.mark.parametrize("sdk", ["openai-py", "openai-node", "vercel"])
def test_embeddings_arrive(sdks: Sdks, site: RunningService, sdk: str) -> None:
    outcome = sdks[sdk].run(Call("embeddings", site.url, site.key, EMBEDDER, "four"), lambda: None)
    assert outcome.problem is None
    assert json.loads(outcome.text) == [0.04, 0.5, -0.5, 0.25]
    assert outcome.request_id


@pytest.mark.parametrize("sdk", ["anthropic-py", "anthropic-node"])
def test_tokens_are_counted(sdks: Sdks, site: RunningService, sdk: str) -> None:
    outcome = sdks[sdk].run(Call("count_tokens", site.url, site.key, MODEL), lambda: None)
    assert outcome.problem is None
    assert outcome.usage
    assert outcome.usage[0] > 0
    assert outcome.request_id


@pytest.mark.parametrize("sdk", ["openai-py", "openai-node"])
def test_a_path_that_does_not_exist_is_a_readable_404(sdks: Sdks, site: RunningService, sdk: str) -> None:
    outcome = sdks[sdk].run(Call("files", site.url, site.key, MODEL), lambda: None)
    assert outcome.problem
    assert outcome.problem.status == 404
    assert "/v1/files" in words(outcome)


# Refusals before the answer.


@dataclass(frozen=True)
class Refusal:
    """A request that is refused, and the exception of every client."""

    name: str
    call: dict[str, Any]
    status: int
    words: str
    openai: tuple[str, str]
    """``error.type`` and ``error.code`` in OpenAI's shape."""
    anthropic: str
    """``error.type`` in Anthropic's shape."""


REFUSALS = [
    Refusal(
        "bad-key",
        {"key": "sk-bad"},
        401,
        "API key is not valid",
        ("invalid_request_error", "invalid_api_key"),
        "authentication_error",
    ),
    Refusal(
        "no-such-model",
        {"model": "Org/Other"},
        404,
        "`Org/Other`",
        ("invalid_request_error", "model_not_found"),
        "not_found_error",
    ),
    Refusal(
        "model-of-another-task",
        {"model": EMBEDDER},
        404,
        EMBEDDER,
        ("invalid_request_error", "model_not_found"),
        "not_found_error",
    ),
    Refusal(
        "over-the-context",
        {"max_tokens": 5000},
        400,
        "5000; it must be from",
        ("invalid_request_error", "invalid_request"),
        "invalid_request_error",
    ),
    Refusal(
        "refused-by-the-engine",
        {"text": "fake: fault=status:400"},
        400,
        "as requested",
        ("fake", "400"),
        "invalid_request_error",
    ),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
@each_way
def test_a_refusal_raises_with_its_message(
    sdks: Sdks, site: RunningService, client: ClientSoftware, stream: bool, refusal: Refusal
) -> None:
    outcome = run(sdks, site, client, stream=stream, **refusal.call)
    assert outcome.text == ""
    assert_problem(client, outcome, refusal.status, refusal.words, refusal.openai, refusal.anthropic)
    assert outcome.problem
    assert outcome.problem.request_id, "an operator finds it by its id"


@pytest.fixture(scope="module")
def spent(site: RunningService) -> str:
    """A key that has used up its one request of this minute."""
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
    assert_problem(client, outcome, 429, "requests per minute", (kind, "rate_limit_exceeded"), kind)
    assert outcome.problem
    assert 1 <= int(outcome.problem.retry_after or 0) <= 60


def test_every_sdk_waits_as_long_as_retry_after_says(sdks: Sdks, site: RunningService) -> None:
    """The next request is free after about two seconds: one refusal, then the answer."""
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
