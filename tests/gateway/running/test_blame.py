"""Whose fault an error is follows from what it says: one client takes no engine away from the others."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from appliance.store.keys import KeyStore
from tests.conftest import RunningService, chat, http, serving, start_mock, wait_until

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")


def asked(endpoint: str, text: str, **more: Any) -> dict[str, Any]:
    """A request of ``endpoint`` that gives ``text`` to the engine."""
    if endpoint == "/v1/completions":
        return {"model": "fake", "prompt": text, **more}
    if endpoint == "/v1/responses":
        return {"model": "fake", "input": text, **more}
    return chat(text, max_tokens=32, **more)


def message_of(answer: Any) -> str:
    return str(answer.json["error"]["message"])


@pytest.fixture(scope="module")
def touchy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A site whose breaker opens after two failures."""
    with serving(tmp_path_factory.mktemp("touchy"), gateway={"breaker_failures": 2}) as running:
        yield running


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("stream", [True, False])
def test_a_mistake_is_400_in_its_apis_shape_and_counts_against_nothing(
    touchy: RunningService, endpoint: str, stream: bool
) -> None:
    """vLLM finds it after the stream has begun with 200: as an event, in words without a code, or by cutting it."""
    for number in range(6):
        answer = touchy.post(endpoint, asked(endpoint, f"fake: fault=mistake {number}", stream=stream))
        assert answer.status == 400, answer.body
        assert "logit_bias" in message_of(answer)
        assert answer.json.get("type") == ("error" if endpoint == "/v1/messages" else None)
        row = touchy.row(answer)
        assert (row["outcome"], row["status"], row["completion_tokens"]) == ("rejected", 400, 0)
        assert touchy.post(endpoint, asked(endpoint, "fake: tokens=2")).status == 200


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_mistake_after_keepalive_comments_ends_the_stream_with_the_error_of_its_api(
    tmp_path: Path, endpoint: str
) -> None:
    """The status went out with the first comment: a whole 400, or a late event, becomes the last event."""
    with serving(tmp_path / "slow", gateway={"queue": {"keepalive_s": 0.2}}) as service:
        for fault in ("fault=mistake ttft_ms=1500", "fault=late_status:400 ttft_ms=1500"):
            answer = service.post(endpoint, asked(endpoint, f"fake: {fault}", stream=True))
            if not answer.body.startswith(b": waiting"):
                assert answer.status == 400, "it came before the first comment"
                continue
            assert answer.status == 200
            last = answer.body.rstrip().rsplit(b"\n\n", 1)[-1]
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
            assert service.row(answer)["outcome"] == "rejected"


@pytest.mark.parametrize("fault", ["status:500", "reset", "cut:0", "error:0", "error:2", "cut:2", "no_done"])
def test_one_client_with_one_request_takes_no_engine_away(touchy: RunningService, fault: str) -> None:
    """The same request for ever, and other requests of the same client: each failure asks for a canary at most."""
    before = touchy.stats()["canaries"]
    with ThreadPoolExecutor(4) as pool:
        poison = [
            pool.submit(touchy.post, "/v1/chat/completions", chat(f"fake: fault={fault} {number % 5}", stream=True))
            for number in range(24)
        ]
        good = [pool.submit(touchy.post, "/v1/chat/completions", chat("fake: tokens=2")) for _ in range(24)]
        assert {answer.result(30).status for answer in good} == {200}
        assert all(b"error" in answer.result(30).body or fault == "no_done" for answer in poison)
    # One canary when the first request fails, and one each second after that.
    assert touchy.stats()["canaries"] - before <= 30
    text = touchy.get("/metrics").body.decode()
    assert 'appliance_gateway_engine_up{engine="chat"} 1.0' in text


def test_failures_that_two_callers_meet_eject_an_engine_that_has_no_canary_either(tmp_path: Path) -> None:
    """An engine that fails whatever it is asked, its canary as well, gets no requests until it generates again."""
    sick = start_mock(tmp_path / "sick.log", "--fault", "status:500")
    try:
        one = {"kind": "mock", "host": "here", "model": "fake", "device": "cpu", "context": 4096, "concurrency": 8}
        with serving(tmp_path / "sick", engines={"chat": one | {"port": sick.port}}) as service:
            store = KeyStore(service.data)
            other = store.create("eve")
            store.close()
            wait_until(lambda: service.get("/v1/models", key=other).status == 200, "the key is known", 5)
            first = service.post("/v1/chat/completions", chat("one"))
            assert first.status in (500, 503)

            def down() -> bool:
                return service.post("/v1/chat/completions", chat("two"), key=other).status == 503

            wait_until(down, "the canary takes it down", 10)
            sick.stop()
            sick = start_mock(tmp_path / "well.log", port=sick.port)
            wait_until(
                lambda: service.post("/v1/chat/completions", chat()).status == 200, "its canary brings it back", 20
            )
    finally:
        sick.stop()


def test_a_cut_that_no_whole_answer_explains_is_the_engines(touchy: RunningService) -> None:
    """/v1/responses is asked once more, whole; where that works the failure stands, with 502."""
    answer = touchy.post("/v1/responses", asked("/v1/responses", "fake: fault=cut:0", stream=True))
    assert (answer.status, answer.json["error"]["code"]) == (502, "engine_failed")
    assert touchy.row(answer)["outcome"] == "engine_failed"


def test_a_client_that_leaves_while_its_cut_is_explained_leaves_nothing_behind(touchy: RunningService) -> None:
    before = touchy.stats()["active"]
    rows = len(touchy.rows())
    body = json.dumps(asked("/v1/responses", "fake: fault=cut:0 ttft_ms=1 tokens=400 itl_ms=50", stream=True))
    import socket  # noqa: PLC0415

    head = f"POST /v1/responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {touchy.key}\r\n"
    with socket.create_connection(("127.0.0.1", touchy.gateway.port)) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        wait_until(
            lambda: '"stream":false' in touchy.last().get("body", "").replace(" ", ""), "it is asked whole", 5
        )
    row = touchy.wait_rows(rows + 1)[-1]
    assert row["outcome"] in ("aborted", "engine_failed")
    wait_until(lambda: touchy.stats()["active"] <= before, "nothing more runs", 5)
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
    answer = touchy.post(endpoint, asked(endpoint, f"fake: fault={fault}"))
    assert answer.status == status
    assert message_of(answer) == "as requested"
    if endpoint == "/v1/messages":
        assert answer.json["type"] == "error"
        assert answer.json["error"]["type"] in (
            "invalid_request_error", "not_found_error", "rate_limit_error", "api_error"
        )  # fmt: skip
        assert answer.headers["request-id"] == answer.headers["x-request-id"]


def test_an_answer_that_is_not_json_becomes_an_error_in_the_apis_shape(service: RunningService) -> None:
    """An endpoint that the engine does not have: FastAPI's own 404."""
    for path, body in (("/detokenize", {"tokens": [1]}), ("/v1/messages/count_tokens", {"messages": []})):
        answer = service.post(path, {"model": "fake", **body})
        assert answer.status in (400, 404)
        assert "error" in answer.json
    assert http(service.url + "/v1/messages", body=b"{", key=service.key).json["type"] == "error"
