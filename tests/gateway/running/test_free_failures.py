"""A request for which nothing was generated costs its user nothing."""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningService, chat, open_stream, serving, start_mock, wait_until
from tests.gateway.running.conftest import one_engine

LIMITS = {"requests_per_minute": 2, "tokens_per_minute": 100_000}
"""Two requests per minute: a third one at once is rejected."""

PATH = "/v1/chat/completions"


def left(service: RunningService) -> int:
    """Use up the requests that the key may still begin now; return their number."""
    begun = 0
    while service.post(PATH, chat("fake: tokens=1", max_tokens=1)).status == 200:
        begun += 1
        assert begun < 10
    return begun


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (PATH, chat("fake: fault=status:400"), 400),
        (PATH, chat("fake: fault=status:404"), 404),
        (PATH, chat("fake: fault=status:500"), 500),
        (PATH, chat("fake: fault=mistake", stream=True), 400),
        (PATH, chat("fake: fault=reset"), 502),
        (PATH, chat("fake: fault=cut:0", stream=True), 502),
        (PATH, chat("fake: fault=error:0", stream=True), 502),
        (PATH, chat("fake: fault=error_body"), 500),
        (PATH, chat(max_tokens=0), 400),
        (PATH, chat() | {"n": 99}, 400),
        (PATH, chat() | {"model": "nobody"}, 404),
        (PATH, chat(messages=[{"role": "user", "content": [{"image_url": {"url": "http://10.0.0.1/"}}]}]), 400),
        ("/v1/responses", {"model": "fake", "input": "fake: fault=mistake", "stream": True}, 400),
        ("/v1/responses", {"model": "fake", "input": "fake: fault=cut:0", "stream": True}, 502),
        ("/v1/messages", chat("fake: fault=mistake", stream=True, max_tokens=9), 400),
    ],
)  # fmt: skip
def test_a_rejected_or_failed_request_costs_nothing(
    tmp_path: Path, path: str, body: dict[str, Any], status: int
) -> None:
    with serving(tmp_path / "limits", limits=LIMITS) as service:
        for _ in range(4):
            response = service.post(path, body)
            assert response.status == status, response.body
            wait_until(lambda: b"requests_in_flight 0.0" in service.get("/metrics").body, "it is over", 5)
        assert left(service) == 2
        limited = service.post(PATH, chat())
        assert (limited.status, limited.json["error"]["code"]) == (429, "rate_limit_exceeded")


def test_no_engine_and_a_full_queue_cost_nothing(tmp_path: Path) -> None:
    one = one_engine(1)
    engine = start_mock(tmp_path / "engine.log")
    queue = {"max_waiting": 0}
    limits = {"requests_per_minute": 3}
    try:
        engines = {"chat": one | {"port": engine.port}}
        with serving(tmp_path / "full", engines=engines, limits=limits, gateway={"queue": queue}) as service:
            with ThreadPoolExecutor(1) as pool:
                running = pool.submit(service.post, PATH, chat("fake: tokens=1 ttft_ms=1500"))
                busy = b'engine_requests_in_flight{engine="chat"} 1.0'
                wait_until(lambda: busy in service.get("/metrics").body, "it runs", 5)
                for _ in range(5):
                    assert service.post(PATH, chat()).status == 503
                assert running.result(10).status == 200
            engine.stop(signal.SIGKILL)
            for _ in range(5):
                assert service.post(PATH, chat()).status == 503
            engine = start_mock(tmp_path / "again.log", port=engine.port)
            wait_until(lambda: service.get("/ready").status == 200, "it is up again", 10)
            assert left(service) == 2
    finally:
        engine.stop()


async def test_generated_and_processed_tokens_are_charged(tmp_path: Path) -> None:
    """A stream that is cut after a token, and a client that disconnects: both are charged a request."""
    with serving(tmp_path / "charged", limits=LIMITS) as service:
        assert service.post(PATH, chat("fake: tokens=9 fault=cut:3", stream=True)).status == 200
        assert left(service) == 1
    with serving(tmp_path / "left", limits=LIMITS) as service:
        reader, writer = await open_stream(service, chat("fake: tokens=2000 itl_ms=20", stream=True))
        await reader.readuntil(b"quick")
        writer.transport.abort()
        await asyncio.to_thread(
            wait_until,
            lambda: "aborted" in {row["outcome"] for row in service.rows()},
            "the disconnect is recorded",
            5,
        )
        assert left(service) == 1
