"""Requests that must wait, engines that hang, a gateway that stops: bounded, told, and nobody forgotten."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.store.keys import KeyStore
from tests.conftest import Response, RunningService, chat, exchange, head, http, serving, start_mock, wait_until

LONG = "fake: tokens=150 itl_ms=10 ttft_ms=10"


def one_engine(slots: int) -> dict[str, Any]:
    return {"kind": "mock", "host": "here", "model": "fake", "device": "cpu", "context": 4096, "concurrency": slots}


@contextmanager
def narrow(folder: Path, slots: int = 2, **queue: Any) -> Iterator[tuple[RunningService, str]]:
    """A gateway before an engine of few slots, and the key of a second user."""
    engine = start_mock(folder.parent / f"{folder.name}.log")
    try:
        engines = {"chat": one_engine(slots) | {"port": engine.port}}
        with serving(folder, engines=engines, gateway={"queue": queue}) as service:
            service.engine.stop()
            service.engine = engine
            store = KeyStore(folder)
            other = store.create("bob")
            store.close()
            wait_until(lambda: service.get("/v1/models", key=other).status == 200, "bob is known", 5)
            yield service, other
    finally:
        engine.stop()


def waiting(service: RunningService) -> float:
    text = service.get("/metrics").body.decode()
    return float(text.split('appliance_gateway_queue_length{model="fake"} ')[1].split()[0])


def running(service: RunningService) -> float:
    text = service.get("/metrics").body.decode()
    return float(text.split('engine_requests_in_flight{engine="chat"} ')[1].split()[0])


def send(
    pool: ThreadPoolExecutor, service: RunningService, text: str, key: str | None = None, **more: Any
) -> Future[Response]:
    return pool.submit(service.post, "/v1/chat/completions", chat(text, **more), key)


def test_the_engine_never_gets_more_than_its_slots_and_waiting_is_told(tmp_path: Path) -> None:
    with narrow(tmp_path / "slots", headroom=0.0) as (service, _), ThreadPoolExecutor(6) as pool:
        answers = [send(pool, service, "fake: tokens=30 itl_ms=10", stream=True) for _ in range(6)]
        most = 0
        while not all(answer.done() for answer in answers):
            most = max(most, service.stats()["active"])
        assert most <= 2
        told = [answer.result().headers for answer in answers]
        places = sorted(int(headers["x-queue-position"]) for headers in told if "x-queue-position" in headers)
        assert places
        assert places[-1] <= 4
        assert all(int(h["x-queue-wait-ms"]) > 0 for h in told if "x-queue-position" in h)
        assert all(answer.result().body.endswith(b"data: [DONE]\n\n") for answer in answers)


def test_a_request_for_four_answers_takes_four_slots(tmp_path: Path) -> None:
    with narrow(tmp_path / "many", slots=4, headroom=0.0) as (service, bob), ThreadPoolExecutor(2) as pool:
        four = send(pool, service, LONG, n=4, stream=True)
        wait_until(lambda: running(service) == 4, "all slots are taken", 5)
        last = send(pool, service, "fake: tokens=1", bob)
        wait_until(lambda: waiting(service) == 1, "bob waits", 5)
        assert [four.result(20).status, last.result(20).status] == [200, 200]
        wait_until(lambda: running(service) == 0, "all slots are given back", 5)


def test_over_his_own_bound_it_is_429_and_over_all_it_is_503(tmp_path: Path) -> None:
    bounds: dict[str, Any] = {"max_waiting": 3, "max_waiting_per_user": 2, "headroom": 0.0}
    with narrow(tmp_path / "bounds", **bounds) as (service, bob), ThreadPoolExecutor(8) as pool:
        first = [send(pool, service, LONG, stream=True) for _ in range(4)]
        wait_until(lambda: waiting(service) == 2, "two wait", 5)
        over = service.post("/v1/chat/completions", chat())
        assert (over.status, over.json["error"]["code"]) == (429, "queue_full")
        assert int(over.headers["retry-after"]) >= 1
        last = send(pool, service, "fake: tokens=1", bob)
        wait_until(lambda: waiting(service) == 3, "bob waits", 5)
        full = service.post("/v1/chat/completions", chat(), bob)
        assert (full.status, full.json["error"]["code"]) == (503, "queue_full")
        assert int(full.headers["retry-after"]) >= 1
        assert {answer.result(30).status for answer in [*first, last]} == {200}
        outcomes = {row["outcome"] for row in service.wait_rows(7)}
        assert outcomes == {"ok", "limited", "queue_full"}


def test_a_revoked_keys_requests_end_where_they_are(tmp_path: Path) -> None:
    """One runs, one waits, of one the body is still coming: none of them goes on, and others' do."""
    with narrow(tmp_path / "revoked", slots=2, headroom=0.0) as (service, bob), ThreadPoolExecutor(3) as pool:
        store = KeyStore(service.data)
        eve = store.create("eve")
        wait_until(lambda: service.get("/v1/models", key=eve).status == 200, "eve is known", 5)
        endless = "fake: tokens=3000 itl_ms=10"
        runs, others = send(pool, service, endless, eve, stream=True), send(pool, service, LONG, bob, stream=True)
        wait_until(lambda: running(service) == 2, "both run", 5)
        waits = send(pool, service, "fake: tokens=1", eve)
        wait_until(lambda: waiting(service) == 1, "one waits", 5)
        body = json.dumps(chat()).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {eve}\r\n"
        with socket.create_connection(("127.0.0.1", service.gateway.port), timeout=10) as slow:
            slow.sendall(f"{head}expect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n".encode())
            assert slow.recv(100).startswith(b"HTTP/1.1 100 ")
            store.revoke(eve)
            wait_until(lambda: runs.done() and waits.done(), "the revocation bites", 1)
            slow.sendall(body)
            assert slow.recv(1000).startswith(b"HTTP/1.1 401 ")
        store.close()
        last = json.loads(runs.result().body.rstrip().rsplit(b"\n\n", 1)[-1].removeprefix(b"data: "))
        assert last["error"]["code"] == "invalid_api_key"
        assert b"[DONE]" not in runs.result().body
        assert (waits.result().status, waits.result().json["error"]["code"]) == (401, "invalid_api_key")
        assert others.result(20).body.endswith(b"data: [DONE]\n\n")
        wait_until(lambda: service.stats()["aborted"] == 1, "the engine is told", 5)
        assert sorted(row["outcome"] for row in service.wait_rows(3)) == ["ok", "revoked", "revoked"]


def test_who_received_least_is_next(tmp_path: Path) -> None:
    with narrow(tmp_path / "fair", slots=1, headroom=0.0) as (service, bob), ThreadPoolExecutor(8) as pool:
        ada = [send(pool, service, "fake: tokens=40 ttft_ms=700") for _ in range(4)]
        wait_until(lambda: waiting(service) == 3, "ada's wait", 5)
        assert send(pool, service, "fake: tokens=1", bob).result(20).status == 200
        assert sum(answer.done() for answer in ada) <= 2, "bob must not wait for all of ada's"
        assert {answer.result(20).status for answer in ada} == {200}


def test_a_keys_weight_buys_its_share(tmp_path: Path) -> None:
    """Twelve requests of the same cost wait, half of them under a key of weight eight: those come eight to one."""
    with narrow(tmp_path / "weight", slots=1, headroom=0.0) as (service, bob), ThreadPoolExecutor(13) as pool:
        store = KeyStore(service.data)
        heavy = store.create("eve", weight=8.0)
        store.close()
        wait_until(lambda: service.get("/v1/models", key=heavy).status == 200, "eve is known", 5)
        first = send(pool, service, "fake: tokens=300 itl_ms=10", bob, stream=True)
        wait_until(lambda: running(service) == 1, "it runs", 5)
        answers = [send(pool, service, "fake: tokens=60 ttft_ms=20", key) for key in [None, heavy] * 6]
        wait_until(lambda: waiting(service) == 12, "all wait", 5)
        assert {answer.result(30).status for answer in [first, *answers]} == {200}
        order = [row["user"] for row in service.wait_rows(13)[1:]]
        assert order[:8].count("eve") == 6, order


@pytest.mark.parametrize(("end", "last"), [("whole", b"[DONE]"), ("left", b""), ("refused", b"queue_timeout")])
def test_requests_in_flight_are_counted_out_however_they_end(tmp_path: Path, end: str, last: bytes) -> None:
    with narrow(tmp_path / "flight", slots=1, headroom=0.0, max_wait_s=1.0) as (service, bob):
        store = KeyStore(service.data)
        key = store.create("eve", requests_in_flight=1)
        store.close()
        wait_until(lambda: service.get("/v1/models", key=key).status == 200, "eve is known", 5)
        text = "fake: tokens=150 itl_ms=10" if end == "whole" else "fake: tokens=3000 itl_ms=10"
        with ThreadPoolExecutor(2) as pool:
            if end == "refused":
                blocks = send(pool, service, "fake: tokens=300 itl_ms=10", bob, stream=True)
                wait_until(lambda: running(service) == 1, "bob's runs", 5)
            body = json.dumps(chat(text, stream=True)).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
            with socket.create_connection(("127.0.0.1", service.gateway.port), timeout=20) as one:
                one.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                wait_until(lambda: running(service) + waiting(service) == 1 + (end == "refused"), "it is there", 5)
                over = service.post("/v1/chat/completions", chat(), key)
                assert (over.status, over.headers["retry-after"]) == (429, "1")
                assert "1 requests running, which is the limit" in over.json["error"]["message"]
                said = b""
                while last not in said:
                    piece = one.recv(65536)
                    assert piece, said
                    said += piece
            if end == "refused":
                assert blocks.result(20).status == 200
            wait_until(lambda: service.post("/v1/chat/completions", chat(), key).status == 200, "it may again", 5)


def test_a_wait_has_an_end(tmp_path: Path) -> None:
    with (
        narrow(tmp_path / "end", slots=1, max_wait_s=1.0, keepalive_s=0.3) as (service, _),
        ThreadPoolExecutor(3) as pool,
    ):
        long = send(pool, service, "fake: tokens=300 itl_ms=15", stream=True)
        wait_until(lambda: running(service) == 1, "it runs", 5)
        plain, stream = send(pool, service, "hi"), send(pool, service, "hi", stream=True)
        late = plain.result(10)
        assert (late.status, late.json["error"]["code"]) == (503, "queue_timeout")
        assert int(late.headers["retry-after"]) >= 1
        assert int(late.headers["x-queue-position"]) in (1, 2)
        assert int(late.headers["x-queue-wait-ms"]) >= 1000
        told = stream.result(10)
        assert told.status == 200, "comments had been sent"
        assert told.body.startswith(b": waiting for an engine\n\n")
        last = json.loads(told.body.rstrip().rsplit(b"\n\n", 1)[-1].removeprefix(b"data: "))
        assert last["error"]["code"] == "queue_timeout"
        assert b"[DONE]" not in told.body
        assert long.result(20).body.endswith(b"data: [DONE]\n\n")


async def test_who_leaves_the_line_frees_his_place(tmp_path: Path) -> None:
    import asyncio  # noqa: PLC0415

    from tests.conftest import open_stream  # noqa: PLC0415

    with narrow(tmp_path / "leave", slots=1, headroom=0.0) as (service, _), ThreadPoolExecutor(1) as pool:
        long = send(pool, service, LONG, stream=True)
        await asyncio.to_thread(wait_until, lambda: running(service) == 1, "it runs", 5)
        _, writer = await open_stream(service, chat(stream=True))
        await asyncio.to_thread(wait_until, lambda: waiting(service) == 1, "one waits", 5)
        writer.transport.abort()
        await asyncio.to_thread(wait_until, lambda: waiting(service) == 0, "it is gone", 5)
        assert long.result(20).status == 200
        left = next(row for row in service.wait_rows(2) if row["outcome"] == "aborted")
        used = (left["engine"], left["prompt_tokens"], left["completion_tokens"], left["estimated"])
        assert used == ("", 0, 0, 0), "nothing was generated for who left, and that is exact"
        assert left["queue_ms"] == left["duration_ms"] > 0


def test_a_stopped_engine_is_ejected_and_taken_back(tmp_path: Path) -> None:
    """SIGSTOP: it accepts connections and says nothing. The canary finds out; the other replica serves."""
    replicas = [start_mock(tmp_path / f"{i}.log") for i in range(2)]
    watch = {"canary_interval_s": 0.3, "canary_timeout_s": 1.0, "first_byte_timeout_s": 3.0}
    try:
        engines = {f"e{i}": one_engine(8) | {"port": replica.port} for i, replica in enumerate(replicas)}
        with serving(tmp_path / "stop", engines=engines, gateway=watch) as service:
            os.kill(replicas[0].process.pid, signal.SIGSTOP)
            wait_until(lambda: b'engine_up{engine="e0"} 0.0' in service.get("/metrics").body, "it is ejected", 15)
            assert service.get("/ready").status == 200
            for number in range(6):
                answer = service.post("/v1/chat/completions", chat(f"fake: tokens=1 #{number}"))
                assert (answer.status, service.row(answer)["engine"]) == (200, "e1")
            os.kill(replicas[0].process.pid, signal.SIGCONT)
            wait_until(lambda: b'engine_up{engine="e0"} 1.0' in service.get("/metrics").body, "it is back", 30)
    finally:
        os.kill(replicas[0].process.pid, signal.SIGCONT)
        for replica in replicas:
            replica.stop()


def test_a_busy_engine_is_not_ejected_for_a_canary_that_waits(tmp_path: Path) -> None:
    """All its sequences are taken by long answers: the canary stands behind them, and their tokens flow."""
    engine = start_mock(tmp_path / "busy.log", "--capacity", "2")
    watch = {"canary_interval_s": 0.3, "canary_timeout_s": 0.6, "queue": {"headroom": 0.0}}
    try:
        engines = {"chat": one_engine(2) | {"port": engine.port}}
        with serving(tmp_path / "busy", engines=engines, gateway=watch) as service, ThreadPoolExecutor(3) as pool:
            answers = [send(pool, service, "fake: tokens=200 itl_ms=20", stream=True) for _ in range(2)]
            wait_until(lambda: running(service) == 2, "all its sequences are taken", 5)
            answers.append(send(pool, service, "fake: tokens=1"))
            assert service.get("/ready").status == 200, "a canary asked for now is late"
            assert not answers[0].done()
            assert [answer.result(30).status for answer in answers] == [200] * 3, "nobody is told that it is down"
    finally:
        engine.stop()


async def test_an_engine_that_only_sends_heads_is_ejected(tmp_path: Path) -> None:
    """Its core hangs and its API server lives: each new stream gets a head at once, and no token ever."""
    import asyncio  # noqa: PLC0415

    from tests.conftest import open_stream  # noqa: PLC0415

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


def test_a_request_on_a_replica_that_hangs_moves_to_the_other(tmp_path: Path) -> None:
    """SIGSTOP before its first byte: once the canary has told, it need not wait for its own timeout, 10 min."""
    replicas = [start_mock(tmp_path / f"{i}.log") for i in range(2)]
    watch = {"canary_interval_s": 0.3, "canary_timeout_s": 1.0}
    stopped = -1
    try:
        engines = {f"e{i}": one_engine(8) | {"port": replica.port} for i, replica in enumerate(replicas)}
        with serving(tmp_path / "hang", engines=engines, gateway=watch) as service, ThreadPoolExecutor(2) as pool:
            text = "fake: tokens=3 ttft_ms=3000"
            answers = [send(pool, service, text), send(pool, service, text, stream=True)]

            def both_run() -> bool:
                active = [http(replica.url + "/stats").json["active"] for replica in replicas]
                return bool(max(active) == 2)

            wait_until(both_run, "the chat's own replica has both", 5)
            stopped = 0 if http(replicas[0].url + "/stats").json["active"] == 2 else 1
            os.kill(replicas[stopped].process.pid, signal.SIGSTOP)
            for answer in answers:
                moved = answer.result(30)
                assert moved.status == 200
                assert service.row(moved)["engine"] == f"e{1 - stopped}"
            assert b"[DONE]" in answers[1].result().body
    finally:
        if stopped >= 0:
            os.kill(replicas[stopped].process.pid, signal.SIGCONT)
        for replica in replicas:
            replica.stop()


def ask_and_leave(service: RunningService, times: int) -> None:
    """A client that hangs up while the engine computes for it; it is the engine's abort number ``times``."""
    body = json.dumps(chat("fake: ttft_ms=60000")).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\n"
    with socket.create_connection(("127.0.0.1", service.gateway.port)) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: service.stats()["active"] == 1, "it runs", 5)
    wait_until(lambda: service.stats()["aborted"] == times, "the abort arrives", 5)


def test_what_clients_do_wrong_does_not_eject_an_engine(tmp_path: Path) -> None:
    with serving(tmp_path / "clients", gateway={"breaker_failures": 2}) as service:
        for _ in range(6):
            assert service.post("/v1/chat/completions", chat("fake: fault=status:400")).status == 400
        assert service.post("/v1/chat/completions", chat()).status == 200
        for number in range(3):
            ask_and_leave(service, number + 1)
        assert service.post("/v1/chat/completions", chat()).status == 200, "clients that left are not its fault"


def test_sigterm_finishes_20_streams_and_answers_new_requests_503(tmp_path: Path) -> None:
    with serving(tmp_path / "drain", gateway={"drain_timeout_s": 20}) as service, ThreadPoolExecutor(20) as pool:
        answers = [send(pool, service, "fake: tokens=150 itl_ms=20", stream=True) for _ in range(20)]
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
        assert all(answer.result(30).body.endswith(b"data: [DONE]\n\n") for answer in answers)
        assert service.gateway.process.wait(10) == 0


@pytest.mark.parametrize(("task", "path", "body"), [
    ("rerank", "/v1/rerank", {"query": "q", "documents": ["a", "b"]}),
    ("rerank", "/v1/score", {"text_1": "q", "text_2": "a"}),
    ("embed", "/v1/embeddings", {"input": ["a"]}),
])  # fmt: skip
def test_pooling_models_have_their_own_paths(tmp_path: Path, task: str, path: str, body: dict[str, Any]) -> None:
    engine = start_mock(tmp_path / "pool.log", "--task", task)
    try:
        models = {"fake": {"source": "./fake", "task": task}}
        engines = {"chat": one_engine(4) | {"port": engine.port}}
        with serving(tmp_path / "pool", models=models, engines=engines) as service:
            assert service.get("/ready").status == 200
            answer = service.post(path, {"model": "fake", **body})
            assert answer.status == 200
            assert service.row(answer)["prompt_tokens"] > 0
            wrong = service.post("/v1/chat/completions", chat())
            assert (wrong.status, wrong.json["error"]["code"]) == (404, "model_not_found")
            instead = path.replace("score", "rerank")
            assert f"use it with {instead}" in wrong.json["error"]["message"]
    finally:
        engine.stop()


def test_anthropics_clients_get_errors_they_know(service: RunningService) -> None:
    body = {"model": "nobody", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    answer = http(service.url + "/v1/messages", body=body, key=service.key)
    assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (404, "error", "not_found_error")


def test_the_log_tells_no_prompt(tmp_path: Path) -> None:
    secret = "canary-7f3a-of-a-prompt"
    with serving(tmp_path / "log", gateway={"breaker_failures": 1000}) as service:
        for text in (secret, f"fake: fault=cut {secret}", f"fake: fault=status:500 {secret}"):
            service.post("/v1/chat/completions", chat(text))
        service.post("/v1/chat/completions", f'{{"model": 7, "x": "{secret}"}}'.encode())
        for fault in ("cut:2", "error:2", "garbage:1", "reset", "error_body", "no_done", "status:400"):
            service.post("/v1/chat/completions", chat(f"fake: fault={fault} {secret}", stream=True, user=secret))
            service.post(
                "/v1/responses", {"model": "fake", "input": f"fake: fault={fault} {secret}", "stream": True}
            )
            service.post("/v1/messages", chat(f"fake: fault={fault} {secret}", max_tokens=9, system=secret))
            service.post("/v1/completions", {"model": "fake", "prompt": f"fake: fault={fault} {secret}"})
        service.post("/v1/chat/completions", chat() | {"model": secret})
        url = {"type": "image_url", "image_url": {"url": f"http://{secret}/"}}
        service.post("/v1/chat/completions", chat(messages=[{"role": "user", "content": [url]}]))
        service.post("/v1/chat/completions", f'{{"model": "fake", "messages": ["{secret}"'.encode())
        service.post(f"/v1/{secret}", chat())
        service.get(f"/v1/models/{secret}", key=service.key)
        exchange(service, head(service, "content-length: 1", f"content-length: {secret}"), b"x")
        exchange(service, head(service, f"idempotency-key: {secret * 20}", f"x-chat-id: {secret}"), b"x")
        service.wait_rows(35)
        lines = [json.loads(line) for line in service.gateway.log.read_text().splitlines()]
        failed = {line["outcome"]: line for line in lines if line["message"] == "a request failed"}
        assert set(failed) == {"engine_failed", "engine_error", "truncated"}
        assert failed["engine_failed"]["request_id"] in {row["request_id"] for row in service.rows()}
        assert secret not in service.gateway.log.read_text()
        assert secret not in service.get("/metrics").body.decode()
    for file in (tmp_path / "log").glob("appliance.sqlite*"):
        assert secret.encode() not in file.read_bytes()
