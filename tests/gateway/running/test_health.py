"""Health of engines: a canary ejects and restores them; neither load nor mistakes of clients do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import (
    RunningService,
    chat,
    http,
    open_stream,
    serving,
    start_mock,
    wait_until,
)
from tests.gateway.running.conftest import one_engine, running, send


def test_a_stopped_engine_is_ejected_and_restored(tmp_path: Path) -> None:
    """After SIGSTOP it accepts connections and sends nothing. The canary detects it; the other replica serves."""
    replicas = [start_mock(tmp_path / f"{i}.log") for i in range(2)]
    watch = {"canary_interval_s": 0.3, "canary_timeout_s": 1.0, "first_byte_timeout_s": 3.0}
    try:
        engines = {f"e{i}": one_engine(8) | {"port": replica.port} for i, replica in enumerate(replicas)}
        with serving(tmp_path / "stop", engines=engines, gateway=watch) as service:
            os.kill(replicas[0].process.pid, signal.SIGSTOP)
            wait_until(lambda: b'engine_up{engine="e0"} 0.0' in service.get("/metrics").body, "it is ejected", 15)
            assert service.get("/ready").status == 200
            for number in range(6):
                response = service.post("/v1/chat/completions", chat(f"fake: tokens=1 #{number}"))
                assert (response.status, service.row(response)["engine"]) == (200, "e1")
            os.kill(replicas[0].process.pid, signal.SIGCONT)
            wait_until(lambda: b'engine_up{engine="e0"} 1.0' in service.get("/metrics").body, "it is up again", 30)
    finally:
        os.kill(replicas[0].process.pid, signal.SIGCONT)
        for replica in replicas:
            replica.stop()


def test_the_cached_readiness_ends_with_the_state_that_it_reports(tmp_path: Path) -> None:
    """A replica that is known to be down is not ready, and the reverse, though the cache lasts ten minutes here."""
    with serving(tmp_path / "cache", gateway={"ready_cache_s": 600, "canary_interval_s": 600}) as service:
        assert service.get("/ready").status == 200
        port = service.engine.port
        service.engine.stop()
        assert service.post("/v1/chat/completions", chat("fake: tokens=1")).status == 503, "it is down from now on"
        assert service.get("/ready").status == 503
        service.engine = start_mock(tmp_path / "again.log", port=port)
        wait_until(lambda: b'engine_up{engine="chat"} 1.0' in service.get("/metrics").body, "it is up again", 30)
        assert service.get("/ready").status == 200


def test_a_late_canary_does_not_eject_a_busy_engine(tmp_path: Path) -> None:
    """Long responses occupy all its sequences: the canary waits for them, and their tokens continue."""
    engine = start_mock(tmp_path / "busy.log", "--capacity", "2")
    watch = {"canary_interval_s": 0.3, "canary_timeout_s": 0.6, "queue": {"headroom": 0.0}}
    try:
        engines = {"chat": one_engine(2) | {"port": engine.port}}
        with serving(tmp_path / "busy", engines=engines, gateway=watch) as service, ThreadPoolExecutor(3) as pool:
            responses = [send(pool, service, "fake: tokens=200 itl_ms=20", stream=True) for _ in range(2)]
            wait_until(lambda: running(service) == 2, "all its sequences are in use", 5)
            responses.append(send(pool, service, "fake: tokens=1"))
            assert service.get("/ready").status == 200, "a canary sent now is late"
            assert not responses[0].done()
            assert [response.result(30).status for response in responses] == [200] * 3, (
                "no request is rejected because it is down"
            )
    finally:
        engine.stop()


async def test_an_engine_that_only_sends_heads_is_ejected(tmp_path: Path) -> None:
    """Its core hangs and its API server runs: each new stream gets a head at once, and never a token."""
    engine = start_mock(tmp_path / "hung.log", "--fault", "hang")
    watch = {"canary_interval_s": 0.5, "canary_timeout_s": 1.0}
    try:
        engines = {"chat": one_engine(1000) | {"port": engine.port}}
        with serving(tmp_path / "hung", engines=engines, gateway=watch) as service:
            writers = []

            async def up() -> bool:
                text = (await asyncio.to_thread(service.get, "/metrics")).body
                return b'engine_up{engine="chat"} 1.0' in text

            async with asyncio.timeout(20):
                while await up():
                    writers.append((await open_stream(service, chat(stream=True)))[1])
                    await asyncio.sleep(0.05)
            for writer in writers:
                writer.transport.abort()
            await asyncio.to_thread(service.wait_rows, len(writers))
    finally:
        engine.stop()


def test_a_request_on_a_hung_replica_fails_over(tmp_path: Path) -> None:
    """SIGSTOP before its first byte: after a failed canary it does not wait for its own timeout of 10 minutes."""
    replicas = [start_mock(tmp_path / f"{i}.log") for i in range(2)]
    watch = {"canary_interval_s": 0.3, "canary_timeout_s": 1.0}
    stopped = -1
    try:
        engines = {f"e{i}": one_engine(8) | {"port": replica.port} for i, replica in enumerate(replicas)}
        with serving(tmp_path / "hang", engines=engines, gateway=watch) as service, ThreadPoolExecutor(2) as pool:
            text = "fake: tokens=3 ttft_ms=3000"
            responses = [send(pool, service, text), send(pool, service, text, stream=True)]

            def both_run() -> bool:
                active = [http(replica.url + "/stats").json["active"] for replica in replicas]
                return bool(max(active) == 2)

            wait_until(both_run, "the chat's own replica has both", 5)
            stopped = 0 if http(replicas[0].url + "/stats").json["active"] == 2 else 1
            os.kill(replicas[stopped].process.pid, signal.SIGSTOP)
            for response in responses:
                moved = response.result(30)
                assert moved.status == 200
                assert service.row(moved)["engine"] == f"e{1 - stopped}"
            assert b"[DONE]" in responses[1].result().body
    finally:
        if stopped >= 0:
            os.kill(replicas[stopped].process.pid, signal.SIGCONT)
        for replica in replicas:
            replica.stop()


def send_and_disconnect(service: RunningService, times: int) -> None:
    """Send a request and disconnect while the engine computes; wait for the engine's abort number ``times``."""
    body = json.dumps(chat("fake: ttft_ms=60000")).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\n"
    with socket.create_connection(("127.0.0.1", service.gateway.port)) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: service.stats()["active"] == 1, "it runs", 5)
    wait_until(lambda: service.stats()["aborted"] == times, "the abort arrives", 5)


def test_mistakes_of_clients_do_not_eject_an_engine(tmp_path: Path) -> None:
    with serving(tmp_path / "clients", gateway={"breaker_failures": 2}) as service:
        for _ in range(6):
            assert service.post("/v1/chat/completions", chat("fake: fault=status:400")).status == 400
        assert service.post("/v1/chat/completions", chat()).status == 200
        for number in range(3):
            send_and_disconnect(service, number + 1)
        assert service.post("/v1/chat/completions", chat()).status == 200, "disconnects do not count"
