"""Errors inside a stream: every client SDK raises them with the gateway's message, after the received text."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.clients.conftest import MODEL, Sdks, Tap, new_key, revoke, sdk_site
from tests.clients.sdk import SdkOutcome
from tests.clients.table import CLIENTS, ClientSoftware, assert_problem, each_client, each_way, run, running, words
from tests.conftest import RunningService, head, http, wait_until

COMMENT = b": waiting for an engine"

LATE = {"rejected": "fault=late_status:400", "complete": "tokens=4"}


@pytest.fixture(scope="module")
def late(sdks: Sdks, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], SdkOutcome]:
    """Return every client's streams that began with keep-alive comments, by their end."""

    def one(site: RunningService, client: ClientSoftware, directive: str) -> SdkOutcome:
        for ttft_ms in (1200, 3000, 9000):
            tap = Tap(site.gateway.port)
            outcome = run(sdks, site, client, f"fake: {directive} ttft_ms={ttft_ms}", stream=True, url=tap.url)
            tap.close()
            if COMMENT in tap.seen:
                return outcome
        pytest.fail(f"{client} never received a comment")

    cases = [(client, how) for client in running(sdks) for how in LATE]
    with (
        sdk_site(tmp_path_factory.mktemp("late") / "site", queue={"keepalive_s": 0.05}) as site,
        ThreadPoolExecutor(len(cases)) as pool,
    ):
        futures = {(str(client), how): pool.submit(one, site, client, LATE[how]) for client, how in cases}
        return {case: future.result() for case, future in futures.items()}


@each_client
def test_a_rejection_after_keep_alive_comments_raises(
    late: dict[tuple[str, str], SdkOutcome], client: ClientSoftware
) -> None:
    outcome = late[str(client), "rejected"]
    assert outcome.text == ""
    assert "as requested" in words(outcome)


@each_client
def test_a_stream_after_keep_alive_comments_is_complete(
    late: dict[tuple[str, str], SdkOutcome], client: ClientSoftware
) -> None:
    outcome = late[str(client), "complete"]
    assert (outcome.problem, outcome.text) == (None, "the quick brown fox")


FAILURES = {
    "connection-lost": ("fault=cut:2", "the engine closed the connection before its response was complete"),
    "error-event": ("fault=error:2", "EngineCore encountered an issue."),
}
"""Failures of vLLM in mid-stream: it disconnects on /v1/responses, and may end other streams with an event."""

FAILING = [(c, how) for c in CLIENTS for how in FAILURES if (c.api, how) != ("responses", "error-event")]


@pytest.mark.parametrize(("client", "how"), FAILING, ids=str)
def test_an_engine_failure_in_mid_stream_raises_after_the_text(
    sdks: Sdks, site: RunningService, client: ClientSoftware, how: str
) -> None:
    directive, text = FAILURES[how]

    def release() -> None:
        http(f"{site.engine.url}/release", method="POST")

    # The engine fails when the client has text: a gateway that reads text and failure at once may send neither.
    outcome = run(sdks, site, client, f"fake: tokens=6 hold=2 {directive}", release, stream=True)
    assert text in words(outcome)
    assert outcome.text == "the quick"


ENDLESS = "fake: tokens=3000 itl_ms=10"


def interrupted(
    sdks: Sdks, service: RunningService, interrupt: Callable[[], None], **more: Any
) -> dict[str, SdkOutcome]:
    """Start a stream with every client, call ``interrupt`` when all have begun; return their outcomes."""
    begun: set[ClientSoftware] = set()
    clients = running(sdks)

    def one(client: ClientSoftware) -> SdkOutcome:
        def mark() -> None:
            begun.add(client)

        return run(sdks, service, client, ENDLESS, mark, stream=True, max_tokens=3000, **more)

    with ThreadPoolExecutor(len(clients)) as pool:
        outcomes = pool.map(one, clients)
        wait_until(lambda: len(begun) == len(clients), "all streams begin", 30)
        interrupt()
        return dict(zip(map(str, clients), outcomes, strict=True))


@pytest.fixture(scope="module")
def revoked(sdks: Sdks, site: RunningService) -> dict[str, SdkOutcome]:
    """Return every client's stream with a key that is revoked meanwhile."""
    key = new_key(site, "eve")
    return interrupted(sdks, site, lambda: revoke(site, key), key=key)


@each_client
def test_a_key_revoked_in_mid_stream_raises(revoked: dict[str, SdkOutcome], client: ClientSoftware) -> None:
    outcome = revoked[str(client)]
    assert "This API key was revoked while your request ran" in words(outcome)
    assert outcome.text.startswith("the")


@each_client
def test_a_client_that_disconnects_stops_the_engine(
    sdks: Sdks, site: RunningService, client: ClientSoftware
) -> None:
    before = site.stats()["aborted"]
    outcome = run(sdks, site, client, ENDLESS, stream=True, disconnect=True, max_tokens=3000)
    assert outcome.text.startswith("the")
    wait_until(lambda: site.stats()["aborted"] == before + 1, "the engine stops")


# A gateway that stops.


@pytest.fixture(scope="module")
def stopped(sdks: Sdks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SdkOutcome]:
    """Return every client's stream at a gateway that stops without a drain."""
    with sdk_site(tmp_path_factory.mktemp("stopped") / "site", drain_timeout_s=0) as service:
        process = service.gateway.process
        outcomes = interrupted(sdks, service, lambda: process.send_signal(signal.SIGTERM))
        process.wait(30)
    return outcomes


@each_client
def test_a_gateway_that_stops_in_mid_stream_raises(stopped: dict[str, SdkOutcome], client: ClientSoftware) -> None:
    outcome = stopped[str(client)]
    assert "The gateway is stopping" in words(outcome)
    assert outcome.text.startswith("the")


@pytest.fixture(scope="module")
def draining(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """Run a gateway that drains: one stream still runs."""
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
def test_a_draining_gateway_raises_with_the_time_to_wait(
    sdks: Sdks, draining: RunningService, client: ClientSoftware, stream: bool
) -> None:
    outcome = run(sdks, draining, client, stream=stream)
    assert_problem(
        client,
        outcome,
        status=503,
        text="The gateway is stopping",
        openai=("server_error", "draining"),
        anthropic="overloaded_error",
    )
    assert outcome.problem
    assert int(outcome.problem.retry_after or 0) >= 1
