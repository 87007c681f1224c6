"""Start and stop of the gateway: a used port, a drain, and its deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import (
    Response,
    RunningService,
    chat,
    http,
    serving,
    wait_until,
)
from tests.gateway.running.conftest import last_event, send


def test_a_used_port_is_reported(service: RunningService, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "appliance", "gateway", "--config", str(service.config)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port {service.gateway.port} on 127.0.0.1 is used by another program")
    assert "use another gateway.port" in done.stderr
    assert "Traceback" not in done.stderr
    assert http(service.url + "/health").status == 200


def test_sigterm_completes_20_streams_and_rejects_new_requests(tmp_path: Path) -> None:
    with serving(tmp_path / "drain", gateway={"drain_timeout_s": 20}) as service, ThreadPoolExecutor(20) as pool:
        responses = [send(pool, service, "fake: tokens=150 itl_ms=20", stream=True) for _ in range(20)]
        wait_until(lambda: service.stats()["active"] == 20, "all run", 10)
        service.gateway.process.send_signal(signal.SIGTERM)
        refused: list[Response] = []

        def draining() -> bool:
            refused.append(service.post("/v1/chat/completions", chat()))
            return refused[-1].status == 503

        wait_until(draining, "it drains", 5)
        assert refused[-1].json["error"]["code"] == "draining"
        assert refused[-1].headers["retry-after"] == "5"
        assert refused[-1].headers["connection"] == "close"
        assert service.get("/ready").status == 503
        assert all(response.result(30).body.endswith(b"data: [DONE]\n\n") for response in responses)
        assert service.gateway.process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_until_the_end_leave_the_exit_code(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path / "signals") as service:
        process = service.gateway.process

        def ended() -> bool:
            # Few pauses: one of the moments after the loop's end lasts microseconds.
            with suppress(ProcessLookupError):
                for _ in range(1000):
                    os.kill(process.pid, number)
            return process.poll() is not None

        wait_until(ended, "the end", 30)
        assert process.returncode == 0


@pytest.mark.parametrize(("seconds", "whole"), [(10, True), (0, False)])
def test_a_stopping_gateway_drains_running_streams(tmp_path: Path, seconds: int, whole: bool) -> None:
    with (
        serving(tmp_path / "drain", gateway={"drain_timeout_s": seconds}) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        body = chat("fake: tokens=100 itl_ms=15", stream=True)
        before = service.stats()["active"]
        response = pool.submit(service.post, "/v1/chat/completions", body)
        wait_until(lambda: service.stats()["active"] == before + 1, "the stream runs", 5)
        service.gateway.process.send_signal(signal.SIGTERM)
        got = response.result(20).body
        service.gateway.process.wait(20)
        assert service.wait_rows(1)[-1]["outcome"] == ("ok" if whole else "stopped")
        if whole:
            assert got.endswith(b"data: [DONE]\n\n")
        else:
            event = last_event(got)
            assert event["error"]["message"] == "The gateway is stopping; try again shortly"
