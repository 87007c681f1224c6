"""Requests that must wait, engines that hang, a gateway that stops: bounded, told, and nobody forgotten."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.store.keys import KeyStore
from tests.conftest import Response, Service, chat, exchange, head, http, serving, start_fake, wait_until

LONG = "fake: tokens=150 itl_ms=10 ttft_ms=10"


def one_engine(slots: int) -> dict[str, Any]:
    return {"kind": "fake", "host": "here", "model": "fake", "device": "cpu", "context": 4096, "concurrency": slots}


@contextmanager
def narrow(folder: Path, slots: int = 2, **queue: Any) -> Iterator[tuple[Service, str]]:
    """A gateway before an engine of few slots, and the key of a second user."""
    engine = start_fake(folder.parent / f"{folder.name}.log")
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


def waiting(service: Service) -> float:
    text = service.get("/metrics").body.decode()
    return float(text.split('appliance_gateway_queue_length{model="fake"} ')[1].split()[0])


def running(service: Service) -> float:
    text = service.get("/metrics").body.decode()
    return float(text.split('engine_requests_in_flight{engine="chat"} ')[1].split()[0])


def send(
    pool: ThreadPoolExecutor, service: Service, text: str, key: str | None = None, **more: Any
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


def test_who_received_least_is_next(tmp_path: Path) -> None:
    with narrow(tmp_path / "fair", slots=1, headroom=0.0) as (service, bob), ThreadPoolExecutor(8) as pool:
        ada = [send(pool, service, "fake: tokens=40 ttft_ms=700") for _ in range(4)]
        wait_until(lambda: waiting(service) == 3, "ada's wait", 5)
        assert send(pool, service, "fake: tokens=1", bob).result(20).status == 200
        assert sum(answer.done() for answer in ada) <= 2, "bob must not wait for all of ada's"
        assert {answer.result(20).status for answer in ada} == {200}


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
    replicas = [start_fake(tmp_path / f"{i}.log") for i in range(2)]
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


def test_what_clients_do_wrong_does_not_eject_an_engine(tmp_path: Path) -> None:
    with serving(tmp_path / "clients", gateway={"breaker_failures": 2}) as service:
        for _ in range(6):
            assert service.post("/v1/chat/completions", chat("fake: fault=status:400")).status == 400
        assert service.post("/v1/chat/completions", chat()).status == 200
        for _ in range(2):
            assert service.post("/v1/chat/completions", chat("fake: fault=status:500")).status == 500
        down = service.post("/v1/chat/completions", chat())
        assert (down.status, down.json["error"]["code"]) == (503, "engine_unavailable")
        wait_until(
            lambda: service.post("/v1/chat/completions", chat()).status == 200, "its canary brings it back", 10
        )


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
    engine = start_fake(tmp_path / "pool.log", "--task", task)
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


def test_anthropics_clients_get_errors_they_know(service: Service) -> None:
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
