"""Every request gets one response and releases everything, with any body and after any error inside the gateway."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.store.keys import KeyStore
from tests.conftest import (
    RunningService,
    StartedProcess,
    a_site,
    chat,
    exchange,
    head,
    start,
    start_mock,
    wait_until,
)
from tests.fakes.faulty_gateway import PARTS
from tests.gateway.running.conftest import create_key, metric
from tests.ports import free_port

NUMBERS = ("1e400", "-1e999", "1.79769313486232e+308", "NaN", "9" * 5000, "4.0", "1E1", "-0", '"4"', "true", "2.5")
TEXTS = ('"caf\\u00e9"', '"\\ud800"', '"x"', '""', '"http://10.0.0.1/"', '"\\u0000"')
SHAPES = (
    "null",
    "[]",
    "{}",
    "[1,[2]]",
    '{"url":1e400}',
    '[{"role":"user","content":"hi"}]',
    '[{"role":7}]',
    "[null]",
)
VALUES = st.sampled_from(NUMBERS + TEXTS + SHAPES)
FIELDS = (
    "stream", "n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens", "stream_options",
    "messages", "prompt", "input", "system", "instructions", "metadata", "user", "tools", "image_url",
    "prompt_cache_key", "x", "documents", "query", "background", "thinking", "temperature",
)  # fmt: skip
PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
    "/v1/embeddings", "/v1/rerank", "/tokenize",
)  # fmt: skip
CHAT = '"messages":[{"role":"system","content":[{"type":"text","text":"a\\u00e9"}]},{"role":"user","content":"hi"}]'


def site_argv(folder: Path, **more: Any) -> tuple[StartedProcess, list[str], int, str]:
    """Start an engine; return it, the arguments of a gateway before it, the port and a key."""
    engine = start_mock(folder / "engine.log")
    port = free_port()
    roles = {"writer": {"model": "fake", "system_prompt": "Be brief.", "sampling": {"temperature": 0.5}}}
    config = folder / "site.json"
    config.write_text(json.dumps(a_site(port, engine.port, folder, roles=roles, **more)))
    store = KeyStore(folder)
    key = store.create("ada")
    store.close()
    return engine, ["gateway", "--config", str(config)], port, key


@contextmanager
def faulty(folder: Path, part: str) -> Iterator[RunningService]:
    """A gateway whose ``part`` fails when it is armed."""
    folder.mkdir(exist_ok=True)
    engine, argv, port, key = site_argv(folder)
    try:
        gateway = start(
            [sys.executable, "-m", "tests.fakes.faulty_gateway", part, *argv], port, folder / "gateway.log"
        )
        try:
            yield RunningService(gateway, engine, folder, key, folder / "site.json")
        finally:
            gateway.stop()
    finally:
        engine.stop()


def arm(service: RunningService) -> None:
    armed = service.gateway.log.read_text().count("armed")
    service.gateway.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: service.gateway.log.read_text().count("armed") == armed + 1, "the part is armed", 10)


def idle(service: RunningService) -> bool:
    return (
        metric(service, "requests_in_flight") == 0
        and metric(service, 'engine_requests_in_flight{engine="chat"}') == 0
        and metric(service, 'queue_length{model="fake"}') == 0
    )


@pytest.mark.parametrize("part", PARTS)
def test_an_error_in_any_part_is_a_500_of_that_request_only(tmp_path: Path, part: str) -> None:
    endpoints = ("/v1/chat/completions", "/v1/messages")
    with faulty(tmp_path, part) as service:
        for number, endpoint in enumerate(endpoints):
            stream = part not in ("read_usage", "whole")
            body = json.dumps(chat("fake: tokens=3", max_tokens=8, stream=stream)).encode()
            length, key = f"content-length: {len(body)}", f"idempotency-key: {part}-{number}"
            sent = head(service, length, key, "connection: close", path=endpoint)
            if part == "with_usage" and endpoint == "/v1/messages":
                # The gateway does not request usage on this endpoint.
                continue
            arm(service)
            response = exchange(service, sent + body, timeout=15)
            first = response.partition(b"\r\n")[0]
            begun = part in ("count", "finish") or first.endswith(b" 200 OK")
            assert begun or first == b"HTTP/1.1 500 Internal Server Error", response[:300]
            if first.endswith(b"500 Internal Server Error"):
                value = json.loads(response.partition(b"\r\n\r\n")[2])
                assert "The gateway failed" in value["error"]["message"]
                assert ("type" in value) == (endpoint == "/v1/messages")
                assert b"x-request-id: " in response
            wait_until(lambda: idle(service), "everything is released", 10)
            # A retry with the same key: nothing of the failed attempt is kept.
            again = exchange(service, sent + body, timeout=15)
            assert again.startswith(b"HTTP/1.1 200 OK"), again[:300]
            wait_until(lambda: idle(service), "everything is released", 10)
        lines = [line for line in service.gateway.log.read_text().splitlines() if line.startswith("{")]
        failed = [entry for entry in map(json.loads, lines) if "UnexpectedError" in entry.get("traceback", "")]
        assert failed
        assert all(entry["level"] == "error" for entry in failed)
        assert any(entry.get("request_id") for entry in failed) or part in ("headers", "pick")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("plain")
    engine, argv, port, key = site_argv(folder)
    try:
        gateway = start([sys.executable, "-m", "appliance", *argv], port, folder / "gateway.log")
        try:
            yield RunningService(gateway, engine, folder, key, folder / "site.json")
        finally:
            code = gateway.stop()
            log = (folder / "gateway.log").read_text()
            assert code == 0
            assert "Traceback" not in log, log[-3000:]
    finally:
        engine.stop()


BODIES = st.lists(st.tuples(st.sampled_from(FIELDS), VALUES), max_size=4).map(
    lambda pairs: ",".join(f'"{name}":{value}' for name, value in pairs)
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(PATHS),
    st.sampled_from(["fake", "writer", "nobody"]),
    st.booleans(),
    BODIES,
    st.sampled_from(["", "idempotency-key: ", "x-chat-id: c"]),
    st.integers(0, 10**9),
)
def test_any_body_gets_one_response(
    plain: RunningService, path: str, model: str, talks: bool, fields: str, more: str, number: int
) -> None:
    """Valid and invalid bodies, on every endpoint and with a role; a second request follows on the connection."""
    parts = [f'"model":"{model}"', *([CHAT] if talks else []), *([fields] if fields else [])]
    body = ("{" + ",".join(parts) + "}").encode()
    lines = [f"content-length: {len(body)}"] + (
        [more + (f"k{number}" if more.endswith(": ") else "")] if more else []
    )
    health = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", plain.gateway.port), timeout=30) as connection:
        connection.sendall(head(plain, *lines, path=path) + body + health)
        response = b""
        while piece := connection.recv(65536):
            response += piece
    statuses = re.findall(rb"HTTP/1\.1 (\d{3}) ", response)
    assert len(statuses) == 2, (body, response[:400])
    assert response.endswith(b'{"status":"ok"}'), body
    assert int(statuses[0]) < 500, (body, response[:400])
    wait_until(lambda: idle(plain), "everything is released", 10)


def test_every_response_has_a_request_id(plain: RunningService) -> None:
    seen = set()
    key = f"authorization: Bearer {plain.key}"
    for line in (
        "GET /health", "GET /v1/models", "GET /nothing", "POST /v1/chat/completions", "DELETE /v1/models",
        "GET /v1/models/x", "OPTIONS /v1/models", "HEAD /ready",
    ):  # fmt: skip
        for credential in (key, "authorization: Bearer sk-bad"):
            sent = f"{line} HTTP/1.1\r\nhost: x\r\n{credential}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            response = exchange(plain, sent.encode(), to_the_end=True)
            found = re.findall(rb"x-request-id: ([0-9a-f]{24})\r\n", response)
            assert len(found) == 1, (line, response)
            seen.add(found[0])
    assert len(seen) == 16
    for broken in (b"NONSENSE\r\n\r\n", b"GET /v1/messages HTTP/1.1\r\nx: " + b"y" * 40_000 + b"\r\n\r\n"):
        assert b"x-request-id: " in exchange(plain, broken, to_the_end=True)


def test_an_error_in_an_operations_endpoint_ends_one_request_only(tmp_path: Path) -> None:
    with faulty(tmp_path, "handle") as service:
        arm(service)
        assert service.get("/health").status == 500
        assert service.get("/health").status == 200


def test_key_poll_and_canaries_continue_after_an_error(tmp_path: Path) -> None:
    """After one error of the poll or of a canary, new keys still work and an engine still recovers."""
    with faulty(tmp_path / "keys", "keys") as service:
        arm(service)
        wait_until(lambda: "reading the keys failed" in service.gateway.log.read_text(), "the poll fails", 10)
        # It waits until the gateway has read the new key.
        create_key(service, "eve")
    with faulty(tmp_path / "canary", "canary") as service:
        arm(service)
        assert service.get("/ready").status == 503
        wait_until(lambda: service.get("/ready").status == 200, "its next canary restores it", 20)
        assert service.post("/v1/chat/completions", chat()).status == 200
