"""The client SDKs against the gateway: answers arrive, and every error is raised with the gateway's words.

One table of clients, one table of faults; each pair is a test.
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.clients.conftest import EMBEDDER, MODEL, Sdks, Tap, new_key, new_keys, revoke, sdk_site
from tests.clients.sdk import Call, Outcome
from tests.conftest import Service, head, http, wait_until


@dataclass(frozen=True)
class Client:
    """One API of one SDK that generates text."""

    sdk: str
    api: str
    finish: str
    """What the SDK calls the natural end of an answer."""
    tool_finish: str | None
    """What it calls an end with a tool call; ``None`` for an API without tools."""
    usage_is_asked_for: bool = False
    """Whether a stream has usage only if the call asks for it."""

    @property
    def anthropic(self) -> bool:
        """Whether it speaks Anthropic's API."""
        return self.api in ("messages", "helper")

    def __str__(self) -> str:
        return f"{self.sdk}-{self.api}"


CLIENTS = [
    Client("openai-py", "chat", "stop", "tool_calls", usage_is_asked_for=True),
    Client("openai-py", "completions", "stop", None, usage_is_asked_for=True),
    Client("openai-py", "responses", "completed", "completed"),
    Client("openai-node", "chat", "stop", "tool_calls", usage_is_asked_for=True),
    Client("openai-node", "completions", "stop", None, usage_is_asked_for=True),
    Client("openai-node", "responses", "completed", "completed"),
    Client("anthropic-py", "messages", "end_turn", "tool_use"),
    Client("anthropic-py", "helper", "end_turn", "tool_use"),
    Client("anthropic-node", "messages", "end_turn", "tool_use"),
    Client("anthropic-node", "helper", "end_turn", "tool_use"),
    Client("vercel", "compatible", "stop", "tool-calls", usage_is_asked_for=True),
    Client("vercel", "completions", "stop", None, usage_is_asked_for=True),
    Client("vercel", "chat", "stop", "tool-calls"),
    Client("vercel", "responses", "stop", "tool-calls"),
    Client("vercel", "messages", "stop", "tool-calls"),
]
WHOLE = [client for client in CLIENTS if client.api != "helper"]
"""The stream helpers have no plain answers."""

SDKS = ["openai-py", "openai-node", "anthropic-py", "anthropic-node"]
"""Those with calls for models."""

each_client = pytest.mark.parametrize("client", CLIENTS, ids=str)
WAYS = [(client, stream) for client in CLIENTS for stream in (False, True) if stream or client in WHOLE]


def way_id(value: Client | bool) -> str:
    return str(value) if isinstance(value, Client) else ("streamed" if value else "plain")


each_way = pytest.mark.parametrize(("client", "stream"), WAYS, ids=way_id)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with sdk_site(tmp_path_factory.mktemp("clients") / "site") as service:
        yield service


@pytest.fixture(autouse=True)
def runs_here(request: pytest.FixtureRequest, sdks: Sdks) -> None:
    """Skip a test whose SDK does not run on this machine."""
    asked = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if "client" in asked:
        sdks[asked["client"].sdk]
    elif "sdk" in asked:
        sdks[asked["sdk"]]


def running(sdks: Sdks) -> list[Client]:
    """The clients that run on this machine."""
    return [client for client in CLIENTS if client.sdk in sdks]


def run(
    sdks: Sdks,
    service: Service,
    client: Client,
    text: str = "fake: tokens=4",
    begun: Callable[[], None] = lambda: None,
    **more: Any,
) -> Outcome:
    """Run one call of ``client`` against ``service``."""
    defaults = {"url": service.url, "key": service.key, "model": MODEL, "text": text}
    call = Call(client.api, **(defaults | more))
    return sdks[client.sdk].run(call, begun)


def words(outcome: Outcome) -> str:
    """The message of the exception that ``outcome`` ended with."""
    assert outcome.problem, f"no exception: {outcome}"
    message = outcome.problem.message
    if "validation failed" in message:
        pytest.fail(f"the SDK does not know this event: {message[:300]}")
    return message


# Answers.


@each_way
def test_an_answer_arrives_whole(sdks: Sdks, site: Service, client: Client, stream: bool) -> None:
    outcome = run(sdks, site, client, stream=stream, usage=True)
    assert outcome.problem is None
    assert (outcome.text, outcome.finish) == ("the quick brown fox", client.finish)
    assert outcome.usage
    assert outcome.usage[0] > 0
    assert outcome.usage[1] == 4


@pytest.mark.parametrize("client", [client for client in CLIENTS if client.usage_is_asked_for], ids=str)
def test_usage_that_the_client_did_not_ask_for_stays_away(sdks: Sdks, site: Service, client: Client) -> None:
    outcome = run(sdks, site, client, stream=True)
    assert (outcome.text, outcome.usage) == ("the quick brown fox", None)


@pytest.mark.parametrize(("client", "stream"), [way for way in WAYS if way[0].tool_finish], ids=way_id)
def test_a_tool_call_arrives_whole(sdks: Sdks, site: Service, client: Client, stream: bool) -> None:
    outcome = run(sdks, site, client, "fake: tool=1", stream=stream, tool=True)
    assert outcome.problem is None
    assert [(name, json.loads(arguments)) for name, arguments in outcome.calls] == [("weather", {"place": "Rome"})]
    assert outcome.finish == client.tool_finish


@each_way
def test_the_request_id_of_an_answer_is_readable(sdks: Sdks, site: Service, client: Client, stream: bool) -> None:
    outcome = run(sdks, site, client, stream=stream)
    assert outcome.request_id
    wait_until(lambda: any(r["request_id"] == outcome.request_id for r in site.rows()), "its usage row", 5)


@pytest.mark.parametrize("sdk", SDKS)
def test_models_are_listed_and_a_name_with_a_slash_is_found(sdks: Sdks, site: Service, sdk: str) -> None:
    listed = sdks[sdk].run(Call("models", site.url, site.key, ""), lambda: None)
    assert (listed.problem, listed.models) == (None, [MODEL, EMBEDDER])
    found = sdks[sdk].run(Call("model", site.url, site.key, MODEL), lambda: None)
    assert (found.problem, found.models) == (None, [MODEL])
    assert found.request_id


@pytest.mark.parametrize("sdk", SDKS)
def test_a_model_that_does_not_exist_is_not_found(sdks: Sdks, site: Service, sdk: str) -> None:
    outcome = sdks[sdk].run(Call("model", site.url, site.key, "Org/Other"), lambda: None)
    assert outcome.problem
    assert (outcome.problem.name, outcome.problem.status) == ("NotFoundError", 404)
    assert "`Org/Other`" in words(outcome), "the name as the user wrote it"


@pytest.mark.parametrize("sdk", ["openai-py", "openai-node", "vercel"])
def test_embeddings_arrive(sdks: Sdks, site: Service, sdk: str) -> None:
    outcome = sdks[sdk].run(Call("embeddings", site.url, site.key, EMBEDDER, "four"), lambda: None)
    assert outcome.problem is None
    assert json.loads(outcome.text) == [0.04, 0.5, -0.5, 0.25]
    assert outcome.request_id


@pytest.mark.parametrize("sdk", ["anthropic-py", "anthropic-node"])
def test_tokens_are_counted(sdks: Sdks, site: Service, sdk: str) -> None:
    outcome = sdks[sdk].run(Call("count_tokens", site.url, site.key, MODEL), lambda: None)
    assert outcome.problem is None
    assert outcome.usage
    assert outcome.usage[0] > 0
    assert outcome.request_id


@pytest.mark.parametrize("sdk", ["openai-py", "openai-node"])
def test_a_path_that_does_not_exist_is_a_readable_404(sdks: Sdks, site: Service, sdk: str) -> None:
    outcome = sdks[sdk].run(Call("files", site.url, site.key, MODEL), lambda: None)
    assert outcome.problem
    assert outcome.problem.status == 404
    assert "/v1/files" in words(outcome)


# Refusals before the answer.


@dataclass(frozen=True)
class Refusal:
    """A request that is refused, and how every client must hear of it."""

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
    Refusal("refused-by-the-engine", {"text": "fake: fault=status:400"}, 400, "as told", ("fake", "400"), "fake"),
]


def hears(client: Client, outcome: Outcome, status: int, text: str, openai: object, anthropic: str) -> None:
    """Assert that the exception has the status, the words and the type of the client's API."""
    problem = outcome.problem
    assert problem, f"no exception: {outcome}"
    assert text in problem.message
    assert problem.status == status
    if client.anthropic:
        assert problem.type == anthropic
    else:
        assert (problem.type, str(problem.code)) == openai


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
@each_way
def test_a_refusal_is_raised_with_its_words(
    sdks: Sdks, site: Service, client: Client, stream: bool, refusal: Refusal
) -> None:
    outcome = run(sdks, site, client, stream=stream, **refusal.call)
    assert outcome.text == ""
    hears(client, outcome, refusal.status, refusal.words, refusal.openai, refusal.anthropic)
    assert outcome.problem
    assert outcome.problem.request_id, "an operator finds it by its id"


@pytest.fixture(scope="module")
def spent(site: Service) -> str:
    """A key that has used up its one request of this minute."""
    key = new_key(site, "spender", requests_per_minute=1)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    assert site.post("/v1/chat/completions", body, key).status == 200
    return key


@each_way
def test_a_limit_is_raised_with_the_time_to_wait(
    sdks: Sdks, site: Service, spent: str, client: Client, stream: bool
) -> None:
    outcome = run(sdks, site, client, stream=stream, key=spent)
    kind = "rate_limit_error"
    hears(client, outcome, 429, "requests per minute", (kind, "rate_limit_exceeded"), kind)
    assert outcome.problem
    assert 1 <= int(outcome.problem.retry_after or 0) <= 60


def test_every_sdk_waits_as_long_as_retry_after_says(sdks: Sdks, site: Service) -> None:
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


def retried(service: Service, client: Client) -> list[str]:
    return [row["outcome"] for row in service.rows() if row["user"] == f"retry.{client}"]


def three_rows(service: Service, client: Client) -> bool:
    return len(retried(service, client)) >= 3


# What goes wrong in a stream.


COMMENT = b": waiting for an engine"

LATE = {"refused": "fault=late_status:400", "answered": "tokens=4"}


@pytest.fixture(scope="module")
def late(sdks: Sdks, site: Service) -> dict[tuple[str, str], Outcome]:
    """Every client's streams that got keep-alive comments first, by how they ended."""

    def one(client: Client, directive: str) -> Outcome:
        for ttft_ms in (1200, 3000, 9000):
            tap = Tap(site.gateway.port)
            outcome = run(sdks, site, client, f"fake: {directive} ttft_ms={ttft_ms}", stream=True, url=tap.url)
            tap.close()
            if COMMENT in tap.seen:
                return outcome
        pytest.fail(f"{client} never got a comment")

    cases = [(client, how) for client in running(sdks) for how in LATE]
    with ThreadPoolExecutor(len(cases)) as pool:
        futures = {(str(client), how): pool.submit(one, client, LATE[how]) for client, how in cases}
        return {case: future.result() for case, future in futures.items()}


@each_client
def test_a_refusal_after_keep_alive_comments_is_raised(
    late: dict[tuple[str, str], Outcome], client: Client
) -> None:
    outcome = late[str(client), "refused"]
    assert outcome.text == ""
    assert "as told" in words(outcome)


@each_client
def test_an_answer_after_keep_alive_comments_is_whole(late: dict[tuple[str, str], Outcome], client: Client) -> None:
    outcome = late[str(client), "answered"]
    assert (outcome.problem, outcome.text) == (None, "the quick brown fox")


BREAKS = {
    "connection-lost": ("fault=cut:2", "the engine closed the connection before its answer was complete"),
    "error-event": ("fault=error:2", "EngineCore encountered an issue."),
}
"""How vLLM breaks off: it cuts /v1/responses, and the other streams it may end with an event."""

BREAKING = [(c, how) for c in CLIENTS for how in BREAKS if (c.api, how) != ("responses", "error-event")]


@pytest.mark.parametrize(("client", "how"), BREAKING, ids=str)
def test_an_engine_that_breaks_off_is_raised_after_its_text(
    sdks: Sdks, site: Service, client: Client, how: str
) -> None:
    directive, text = BREAKS[how]
    outcome = run(sdks, site, client, f"fake: tokens=6 itl_ms=5 {directive}", stream=True)
    assert text in words(outcome)
    assert outcome.text == "the quick"


ENDLESS = "fake: tokens=3000 itl_ms=10"


def interrupted(sdks: Sdks, service: Service, interrupt: Callable[[], None], **more: Any) -> dict[str, Outcome]:
    """Start a stream with every client, call ``interrupt`` when all have begun; how each stream ended."""
    begun: set[Client] = set()
    clients = running(sdks)

    def one(client: Client) -> Outcome:
        def mark() -> None:
            begun.add(client)

        return run(sdks, service, client, ENDLESS, mark, stream=True, max_tokens=3000, **more)

    with ThreadPoolExecutor(len(clients)) as pool:
        outcomes = pool.map(one, clients)
        wait_until(lambda: len(begun) == len(clients), "all streams begin", 20)
        interrupt()
        return dict(zip(map(str, clients), outcomes, strict=True))


@pytest.fixture(scope="module")
def revoked(sdks: Sdks, site: Service) -> dict[str, Outcome]:
    """Every client's stream under a key that is revoked meanwhile."""
    key = new_key(site, "eve")
    return interrupted(sdks, site, lambda: revoke(site, key), key=key)


@each_client
def test_a_key_revoked_in_mid_stream_is_raised(revoked: dict[str, Outcome], client: Client) -> None:
    outcome = revoked[str(client)]
    assert "This API key was revoked while your request ran" in words(outcome)
    assert outcome.text.startswith("the")


@each_client
def test_a_client_that_leaves_its_stream_stops_the_engine(sdks: Sdks, site: Service, client: Client) -> None:
    before = site.stats()["aborted"]
    outcome = run(sdks, site, client, ENDLESS, stream=True, leave=True, max_tokens=3000)
    assert outcome.text.startswith("the")
    wait_until(lambda: site.stats()["aborted"] == before + 1, "the engine stops")


# A gateway that stops.


@pytest.fixture(scope="module")
def stopped(sdks: Sdks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every client's stream at a gateway that stops without waiting for it."""
    with sdk_site(tmp_path_factory.mktemp("stopped") / "site", drain_timeout_s=0) as service:
        process = service.gateway.process
        outcomes = interrupted(sdks, service, lambda: process.send_signal(signal.SIGTERM))
        process.wait(30)
    return outcomes


@each_client
def test_a_gateway_that_stops_in_mid_stream_is_raised(stopped: dict[str, Outcome], client: Client) -> None:
    outcome = stopped[str(client)]
    assert "The gateway is stopping" in words(outcome)
    assert outcome.text.startswith("the")


@pytest.fixture(scope="module")
def draining(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A gateway that drains: one stream still runs."""
    with sdk_site(tmp_path_factory.mktemp("draining") / "site", drain_timeout_s=600) as service:
        message = {"role": "user", "content": "fake: tokens=3000 itl_ms=100"}
        body = json.dumps({"model": MODEL, "stream": True, "max_tokens": 3000, "messages": [message]}).encode()
        with socket.create_connection(("127.0.0.1", service.gateway.port), timeout=30) as held:
            held.sendall(head(service, f"content-length: {len(body)}") + body)
            while b"data: " not in held.recv(65536):
                pass
            service.gateway.process.send_signal(signal.SIGTERM)
            wait_until(lambda: http(f"{service.url}/ready").status == 503, "the gateway drains", 5)
            yield service
        service.gateway.process.wait(30)


@each_way
def test_a_gateway_that_drains_is_raised_with_the_time_to_wait(
    sdks: Sdks, draining: Service, client: Client, stream: bool
) -> None:
    outcome = run(sdks, draining, client, stream=stream)
    hears(client, outcome, 503, "The gateway is stopping", ("server_error", "draining"), "overloaded_error")
    assert outcome.problem
    assert int(outcome.problem.retry_after or 0) >= 1
