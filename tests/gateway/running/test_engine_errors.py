"""Errors of engines: a client's mistake is not a failure of the engine, and affects no other client."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningService, chat, http, serving, start_mock, wait_until
from tests.gateway.running.conftest import create_key, one_engine

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")


def request_body(endpoint: str, text: str, **more: Any) -> dict[str, Any]:
    """Return a request of ``endpoint`` with the prompt ``text``."""
    if endpoint == "/v1/completions":
        return {"model": "fake", "prompt": text, **more}
    if endpoint == "/v1/responses":
        return {"model": "fake", "input": text, **more}
    return chat(text, max_tokens=32, **more)


def message_of(response: Any) -> str:
    return str(response.json["error"]["message"])


@pytest.fixture(scope="module")
def touchy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A site whose breaker opens after two failures."""
    with serving(tmp_path_factory.mktemp("touchy"), gateway={"breaker_failures": 2}) as running:
        yield running


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("stream", [True, False])
def test_a_mistake_is_400_in_the_shape_of_its_api_and_does_not_count(
    touchy: RunningService, endpoint: str, stream: bool
) -> None:
    """vLLM detects it after the stream has begun with 200: an event, a message without a code, or a cut."""
    for number in range(6):
        response = touchy.post(endpoint, request_body(endpoint, f"fake: fault=mistake {number}", stream=stream))
        assert response.status == 400, response.body
        assert "logit_bias" in message_of(response)
        assert response.json.get("type") == ("error" if endpoint == "/v1/messages" else None)
        row = touchy.row(response)
        assert (row["outcome"], row["status"], row["completion_tokens"]) == ("rejected", 400, 0)
        assert touchy.post(endpoint, request_body(endpoint, "fake: tokens=2")).status == 200


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_mistake_after_keepalive_comments_ends_the_stream_with_the_error_of_its_api(
    tmp_path: Path, endpoint: str
) -> None:
    """The first comment carries the status: a whole 400, or a late event, becomes the last event."""
    with serving(tmp_path / "slow", gateway={"queue": {"keepalive_s": 0.2}}) as service:
        for fault in ("fault=mistake ttft_ms=1500", "fault=late_status:400 ttft_ms=1500"):
            response = service.post(endpoint, request_body(endpoint, f"fake: {fault}", stream=True))
            if not response.body.startswith(b": waiting"):
                assert response.status == 400, "it preceded the first comment"
                continue
            assert response.status == 200
            last = response.body.rstrip().rsplit(b"\n\n", 1)[-1]
            name, _, data = last.rpartition(b"data: ")
            event = json.loads(data)
            expected = {"/v1/messages": b"event: error\n", "/v1/responses": b"event: response.failed\n"}
            assert name == expected.get(endpoint, b"")
            assert "logit_bias" in str(event["error"]["message"]) or "as requested" in str(
                event["error"]["message"]
            )
            if endpoint == "/v1/responses":
                assert event["type"] == "response.failed"
                assert event["response"]["status"] == "failed"
                assert event["response"]["error"]["message"] == event["error"]["message"]
            assert service.row(response)["outcome"] == "rejected"


@pytest.mark.parametrize("fault", ["status:500", "reset", "cut:0", "error:0", "error:2", "cut:2", "no_done"])
def test_one_client_with_one_request_does_not_eject_an_engine(touchy: RunningService, fault: str) -> None:
    """One request repeatedly, and other requests of the same client: each failure causes one canary at most."""
    before = touchy.stats()["canaries"]
    with ThreadPoolExecutor(4) as pool:
        poison = [
            pool.submit(touchy.post, "/v1/chat/completions", chat(f"fake: fault={fault} {number % 5}", stream=True))
            for number in range(24)
        ]
        good = [pool.submit(touchy.post, "/v1/chat/completions", chat("fake: tokens=2")) for _ in range(24)]
        assert {response.result(30).status for response in good} == {200}
        assert all(b"error" in response.result(30).body or fault == "no_done" for response in poison)
    # One canary when the first request fails, and one each second after that.
    assert touchy.stats()["canaries"] - before <= 30
    text = touchy.get("/metrics").body.decode()
    assert 'appliance_gateway_engine_up{engine="chat"} 1.0' in text


def test_failures_of_two_callers_eject_an_engine_whose_canary_fails(tmp_path: Path) -> None:
    """An engine that fails every request and its canary gets no requests until it generates again."""
    sick = start_mock(tmp_path / "sick.log", "--fault", "status:500")
    try:
        one = one_engine(8)
        with serving(tmp_path / "sick", engines={"chat": one | {"port": sick.port}}) as service:
            other = create_key(service, "eve")
            first = service.post("/v1/chat/completions", chat("one"))
            assert first.status in (500, 503)

            def down() -> bool:
                return service.post("/v1/chat/completions", chat("two"), key=other).status == 503

            wait_until(down, "the canary takes it down", 10)
            sick.stop()
            sick = start_mock(tmp_path / "well.log", port=sick.port)
            wait_until(
                lambda: service.post("/v1/chat/completions", chat()).status == 200, "its canary restores it", 20
            )
    finally:
        sick.stop()


def test_a_cut_without_an_explanation_counts_against_the_engine(touchy: RunningService) -> None:
    """The gateway repeats the request without a stream; if that succeeds, the failure is reported with 502."""
    response = touchy.post("/v1/responses", request_body("/v1/responses", "fake: fault=cut:0", stream=True))
    assert (response.status, response.json["error"]["code"]) == (502, "engine_failed")
    assert touchy.row(response)["outcome"] == "engine_failed"


def _without_canaries(counters: dict[str, int]) -> int:
    """Return the number of requests that the engine received, except canaries."""
    return counters["requests"] - counters["canaries"]


def test_a_disconnect_during_the_explanation_releases_everything(touchy: RunningService) -> None:
    counters = touchy.stats()
    rows = len(touchy.rows())
    # The engine needs 20 s for the explanation; the gateway cancels it earlier.
    body = json.dumps(
        request_body("/v1/responses", "fake: fault=cut:0 ttft_ms=1 tokens=400 itl_ms=50", stream=True)
    )
    head = f"POST /v1/responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {touchy.key}\r\n"
    with socket.create_connection(("127.0.0.1", touchy.gateway.port)) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        # A counter: the engine's last request can be a later one, and a busy engine can be late.
        wait_until(
            lambda: _without_canaries(touchy.stats()) >= _without_canaries(counters) + 2,
            "the request is repeated without a stream",
        )
    row = touchy.wait_rows(rows + 1)[-1]
    assert row["outcome"] in ("aborted", "engine_failed")
    wait_until(lambda: touchy.stats()["active"] <= counters["active"], "nothing more runs", 5)
    text = touchy.get("/metrics").body.decode()
    assert "appliance_gateway_requests_in_flight 0.0" in text
    assert 'appliance_gateway_engine_requests_in_flight{engine="chat"} 0.0' in text


@pytest.mark.parametrize(
    ("fault", "status"), [("status:400", 400), ("status:404", 404), ("status:429", 429), ("status:500", 500)]
)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_engines_whole_error_has_the_shape_of_its_api(
    touchy: RunningService, endpoint: str, fault: str, status: int
) -> None:
    response = touchy.post(endpoint, request_body(endpoint, f"fake: fault={fault}"))
    assert response.status == status
    assert message_of(response) == "as requested"
    if endpoint == "/v1/messages":
        assert response.json["type"] == "error"
        assert response.json["error"]["type"] in (
            "invalid_request_error", "not_found_error", "rate_limit_error", "api_error"
        )  # fmt: skip
        assert response.headers["request-id"] == response.headers["x-request-id"]


def test_a_response_without_json_becomes_an_error_in_the_shape_of_its_api(service: RunningService) -> None:
    """An endpoint that the engine does not have: the response is FastAPI's own 404."""
    for path, body in (("/detokenize", {"tokens": [1]}), ("/v1/messages/count_tokens", {"messages": []})):
        response = service.post(path, {"model": "fake", **body})
        assert response.status in (400, 404)
        assert "error" in response.json
    assert http(service.url + "/v1/messages", body=b"{", key=service.key).json["type"] == "error"
