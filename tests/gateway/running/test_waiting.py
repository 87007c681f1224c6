"""Queues, hung engines and a stopping gateway: every wait is bounded and reported."""

from __future__ import annotations

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import chat, open_stream, wait_until
from tests.gateway.running.conftest import LONG, create_key, narrow, running, send, waiting


def test_the_engine_never_gets_more_than_its_slots_and_waits_are_reported(tmp_path: Path) -> None:
    with narrow(tmp_path / "slots", headroom=0.0) as (service, _), ThreadPoolExecutor(6) as pool:
        responses = [send(pool, service, "fake: tokens=30 itl_ms=10", stream=True) for _ in range(6)]
        most = 0
        while not all(response.done() for response in responses):
            most = max(most, service.stats()["active"])
        assert most <= 2
        headers = [response.result().headers for response in responses]
        places = sorted(int(h["x-queue-position"]) for h in headers if "x-queue-position" in h)
        assert places
        assert places[-1] <= 4
        assert all(int(h["x-queue-wait-ms"]) > 0 for h in headers if "x-queue-position" in h)
        assert all(response.result().body.endswith(b"data: [DONE]\n\n") for response in responses)


def test_a_request_for_four_choices_takes_four_slots(tmp_path: Path) -> None:
    with narrow(tmp_path / "many", slots=4, headroom=0.0) as (service, bob), ThreadPoolExecutor(2) as pool:
        four = send(pool, service, LONG, n=4, stream=True)
        wait_until(lambda: running(service) == 4, "all slots are in use", 5)
        last = send(pool, service, "fake: tokens=1", bob)
        wait_until(lambda: waiting(service) == 1, "bob waits", 5)
        assert [four.result(20).status, last.result(20).status] == [200, 200]
        wait_until(lambda: running(service) == 0, "all slots are released", 5)


def test_a_full_queue_of_one_user_is_429_and_of_all_users_503(tmp_path: Path) -> None:
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
        assert {response.result(30).status for response in [*first, last]} == {200}
        outcomes = {row["outcome"] for row in service.wait_rows(7)}
        assert outcomes == {"ok", "limited", "queue_full"}


def test_the_user_with_the_least_service_is_next(tmp_path: Path) -> None:
    with narrow(tmp_path / "fair", slots=1, headroom=0.0) as (service, bob), ThreadPoolExecutor(8) as pool:
        ada = [send(pool, service, "fake: tokens=40 ttft_ms=700") for _ in range(4)]
        wait_until(lambda: waiting(service) == 3, "ada's wait", 5)
        assert send(pool, service, "fake: tokens=1", bob).result(20).status == 200
        assert sum(response.done() for response in ada) <= 2, "bob does not wait for all requests of ada"
        assert {response.result(20).status for response in ada} == {200}


def test_a_key_gets_its_share_by_weight(tmp_path: Path) -> None:
    """Twelve requests of the same cost wait, half of them with a key of weight eight: those run eight to one."""
    with narrow(tmp_path / "weight", slots=1, headroom=0.0) as (service, bob), ThreadPoolExecutor(13) as pool:
        heavy = create_key(service, "eve", weight=8.0)
        first = send(pool, service, "fake: tokens=300 itl_ms=10", bob, stream=True)
        wait_until(lambda: running(service) == 1, "it runs", 5)
        responses = [send(pool, service, "fake: tokens=60 ttft_ms=20", key) for key in [None, heavy] * 6]
        wait_until(lambda: waiting(service) == 12, "all wait", 5)
        assert {response.result(30).status for response in [first, *responses]} == {200}
        order = [row["user"] for row in service.wait_rows(13)[1:]]
        assert order[:8].count("eve") == 6, order


@pytest.mark.parametrize(("end", "last"), [("whole", b"[DONE]"), ("left", b""), ("refused", b"queue_timeout")])
def test_every_end_of_a_request_reduces_the_count_in_flight(tmp_path: Path, end: str, last: bytes) -> None:
    with narrow(tmp_path / "flight", slots=1, headroom=0.0, max_wait_s=1.0) as (service, bob):
        key = create_key(service, "eve", requests_in_flight=1)
        text = "fake: tokens=150 itl_ms=10" if end == "whole" else "fake: tokens=3000 itl_ms=10"
        with ThreadPoolExecutor(2) as pool:
            if end == "refused":
                blocks = send(pool, service, "fake: tokens=300 itl_ms=10", bob, stream=True)
                wait_until(lambda: running(service) == 1, "bob's runs", 5)
            body = json.dumps(chat(text, stream=True)).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
            with socket.create_connection(("127.0.0.1", service.gateway.port), timeout=20) as one:
                one.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                wait_until(
                    lambda: running(service) + waiting(service) == 1 + (end == "refused"), "the request is known", 5
                )
                over = service.post("/v1/chat/completions", chat(), key)
                assert (over.status, over.headers["retry-after"]) == (429, "1")
                assert "1 requests running, which is the limit" in over.json["error"]["message"]
                received = b""
                while last not in received:
                    piece = one.recv(65536)
                    assert piece, received
                    received += piece
            if end == "refused":
                assert blocks.result(20).status == 200
            wait_until(
                lambda: service.post("/v1/chat/completions", chat(), key).status == 200,
                "the count in flight is 0 again",
                5,
            )


def test_a_wait_is_bounded(tmp_path: Path) -> None:
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
        streamed = stream.result(10)
        assert streamed.status == 200, "comments had been sent"
        assert streamed.body.startswith(b": waiting for an engine\n\n")
        last = json.loads(streamed.body.rstrip().rsplit(b"\n\n", 1)[-1].removeprefix(b"data: "))
        assert last["error"]["code"] == "queue_timeout"
        assert b"[DONE]" not in streamed.body
        assert long.result(20).body.endswith(b"data: [DONE]\n\n")


async def test_a_disconnect_removes_the_request_from_the_queue(tmp_path: Path) -> None:
    with narrow(tmp_path / "leave", slots=1, headroom=0.0) as (service, _), ThreadPoolExecutor(1) as pool:
        long = send(pool, service, LONG, stream=True)
        await asyncio.to_thread(wait_until, lambda: running(service) == 1, "it runs", 5)
        _, writer = await open_stream(service, chat(stream=True))
        await asyncio.to_thread(wait_until, lambda: waiting(service) == 1, "one waits", 5)
        writer.transport.abort()
        await asyncio.to_thread(wait_until, lambda: waiting(service) == 0, "it left the queue", 5)
        assert long.result(20).status == 200
        left = next(row for row in service.wait_rows(2) if row["outcome"] == "aborted")
        used = (left["engine"], left["prompt_tokens"], left["completion_tokens"], left["estimated"])
        assert used == ("", 0, 0, 0), "nothing was generated, and that is exact"
        assert left["queue_ms"] == left["duration_ms"] > 0
