"""Disconnects of clients and failures of engines: each reaches the other side at once."""

from __future__ import annotations

import asyncio
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Response, RunningService, chat, http, open_stream, serving, start_mock, wait_until
from tests.gateway.running.conftest import last_event, one_engine

SLOW_STREAM = chat("fake: tokens=2000 itl_ms=20 ttft_ms=20", stream=True)
SLOW_PLAIN = chat("fake: ttft_ms=60000")
ABORTS = 20


@pytest.mark.parametrize("kind", ["stream", "plain"])
async def test_20_of_20_aborts_reach_the_engine_within_half_a_second(service: RunningService, kind: str) -> None:
    before, rows = service.stats(), len(service.rows())
    body = SLOW_STREAM if kind == "stream" else SLOW_PLAIN
    clients = await asyncio.gather(*(open_stream(service, body) for _ in range(ABORTS)))
    if kind == "stream":
        for reader, _ in clients:
            await asyncio.wait_for(reader.readuntil(b"quick"), 5)
    await asyncio.to_thread(
        wait_until, lambda: service.stats()["active"] == before["active"] + ABORTS, "all run", 5
    )
    for _, writer in clients:
        writer.transport.abort()
    left = time.monotonic()
    await asyncio.to_thread(
        wait_until, lambda: service.stats()["aborted"] == before["aborted"] + ABORTS, "all aborts arrive", 0.5
    )
    assert time.monotonic() - left < 0.6
    new = (await asyncio.to_thread(service.wait_rows, rows + ABORTS))[rows:]
    assert [row["outcome"] for row in new] == ["aborted"] * ABORTS
    assert all(row["estimated"] and row["prompt_tokens"] for row in new)
    if kind == "stream":
        assert all(row["completion_tokens"] >= 2 for row in new)


async def test_a_disconnect_after_the_last_event_counts_as_success(service: RunningService) -> None:
    """OpenAI's client disconnects at ``[DONE]``, which may be before the engine has ended its response in HTTP."""
    rows = len(service.rows())
    body = chat("fake: tokens=5 fault=late_end", stream=True, stream_options={"include_usage": True})
    reader, writer = await open_stream(service, body)
    await reader.readuntil(b"data: [DONE]\n\n")
    writer.transport.abort()
    row = (await asyncio.to_thread(service.wait_rows, rows + 1))[-1]
    assert (row["outcome"], row["estimated"], row["completion_tokens"]) == ("ok", 0, 5)


async def test_a_disconnect_inside_the_body_is_recorded(service: RunningService) -> None:
    rows = len(service.rows())
    reader, writer = await asyncio.open_connection("127.0.0.1", service.gateway.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\n"
    writer.write(f"{head}expect: 100-continue\r\ncontent-length: 1000\r\n\r\n".encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{")
    await writer.drain()
    writer.transport.abort()
    row = (await asyncio.to_thread(service.wait_rows, rows + 1))[-1]
    assert (row["outcome"], row["status"]) == ("aborted", 499)


@pytest.mark.parametrize("after", [0, 3])
def test_a_cut_stream_ends_in_an_error_event_and_no_done(service: RunningService, after: int) -> None:
    response = service.post("/v1/chat/completions", chat(f"fake: tokens=9 fault=cut:{after}", stream=True))
    if after == 0:
        assert (response.status, response.json["error"]["code"]) == (502, "engine_failed")
    else:
        event = last_event(response.body)
        assert event["error"]["code"] == "engine_failed"
        assert response.body.count(b'"content":') == after + 1
    assert service.row(response)["outcome"] == "engine_failed"


def test_a_whole_response_that_is_cut_is_502(service: RunningService) -> None:
    response = service.post("/v1/chat/completions", chat("fake: fault=cut"))
    assert (response.status, response.json["error"]["code"]) == (502, "engine_failed")


def test_a_stream_without_done_counts_as_truncated(service: RunningService) -> None:
    row = service.row(service.post("/v1/chat/completions", chat("fake: fault=no_done", stream=True)))
    assert (row["outcome"], row["status"]) == ("truncated", 200)


def test_a_stream_without_usage_is_estimated(service: RunningService) -> None:
    row = service.row(service.post("/v1/chat/completions", chat("fake: tokens=7 fault=no_usage", stream=True)))
    assert row["estimated"] == 1
    assert 7 <= row["completion_tokens"] <= 9
    assert row["prompt_tokens"] > 0, "the engine processed the prompt, whether it reported its tokens or not"


def test_a_whole_response_is_estimated_only_without_usage(service: RunningService) -> None:
    text = f"fake: tokens=40 fault=no_usage {'x' * 400}"
    row = service.row(service.post("/v1/chat/completions", chat(text)))
    assert (row["outcome"], row["estimated"]) == ("ok", 1)
    assert row["prompt_tokens"] >= 100
    assert row["completion_tokens"] >= 40
    long = service.row(service.post("/v1/chat/completions", chat(f"fake: fault=no_usage {'x' * 100_000}")))
    assert long["prompt_tokens"] == 4096, "an estimate is at most the context"
    exact = service.row(service.post("/v1/chat/completions", chat("fake: tokens=3")))
    assert (exact["estimated"], exact["completion_tokens"]) == (0, 3)


def test_a_frame_with_invalid_json_affects_no_other_frame(service: RunningService) -> None:
    """Two tokens, invalid JSON, and the rest of the tokens: the client gets everything, and the count is right."""
    response = service.post("/v1/chat/completions", chat("fake: tokens=4 fault=garbage:2", stream=True))
    assert response.status == 200
    assert b"data: {not json\n\n" in response.body
    assert response.body.count(b'"content":') == 5, "the opening frame and four tokens"
    row = service.row(response)
    assert (row["outcome"], row["completion_tokens"], row["estimated"]) == ("ok", 4, 0)


def test_an_error_inside_the_stream_counts_against_the_engine(service: RunningService) -> None:
    response = service.post("/v1/chat/completions", chat("fake: fault=error:2", stream=True))
    assert b"EngineCore encountered" in response.body
    assert service.row(response)["outcome"] == "engine_error"


def test_a_silent_engine_times_out(tmp_path_factory: pytest.TempPathFactory) -> None:
    timeouts = {"first_byte_timeout_s": 0.5, "stall_timeout_s": 0.5}
    with serving(tmp_path_factory.mktemp("silent"), gateway=timeouts) as service:
        for body in (SLOW_PLAIN, chat("fake: fault=hang", stream=True)):
            # A stream without a byte has not begun: it gets a status, not an event.
            response = service.post("/v1/chat/completions", body)
            assert (response.status, response.json["error"]["code"]) == (504, "engine_timeout")
        response = service.post("/v1/chat/completions", chat("fake: fault=stall:2", stream=True))
        event = last_event(response.body)
        assert event["error"]["code"] == "engine_timeout"
        rows = service.wait_rows(3)
        assert [row["outcome"] for row in rows] == ["timeout"] * 3
        assert [bool(row["prompt_tokens"]) for row in rows] == [False, False, True], (
            "a request without a token has no usage"
        )
        wait_until(lambda: service.stats()["active"] == 0, "the engine sees the abort", 1)


def test_a_dead_engine_is_503_and_recovers_automatically(tmp_path: Path) -> None:
    with serving(tmp_path / "dead") as service:
        assert service.post("/v1/chat/completions", chat()).status == 200
        service.engine.stop(signal.SIGKILL)
        response = service.post("/v1/chat/completions", chat())
        assert (response.status, response.headers["retry-after"]) == (503, "2")
        wait_until(lambda: service.get("/ready").status == 503, "/ready reports it", 2)
        assert service.get("/health").status == 200
        service.engine = start_mock(tmp_path / "again.log", port=service.engine.port)
        wait_until(lambda: service.get("/ready").status == 200, "/ready recovers", 2)
        assert service.post("/v1/chat/completions", chat()).status == 200


def test_a_stale_connection_is_replaced(tmp_path: Path) -> None:
    """The engine restarted between two requests: the idle connection is dead, and the client gets no error."""
    with serving(tmp_path / "stale") as service:
        for _ in range(3):
            assert service.post("/v1/chat/completions", chat()).status == 200
            service.engine.stop(signal.SIGKILL)
            service.engine = start_mock(tmp_path / "again.log", port=service.engine.port)
        assert service.post("/v1/chat/completions", chat("fake: fault=reset")).status == 502
        stats = service.stats()
        assert stats["requests"] - stats["canaries"] == 1, "a request on a fresh connection is not repeated"


def test_a_replica_that_refuses_connections_is_skipped(tmp_path: Path) -> None:
    second = start_mock(tmp_path / "second.log")
    try:
        one = one_engine(8)
        engines = {"dead": one | {"port": 1}, "live": one | {"port": second.port}}
        with serving(tmp_path / "two", engines=engines) as service:
            assert {service.post("/v1/chat/completions", chat()).status for _ in range(6)} == {200}
            assert {row["engine"] for row in service.wait_rows(6)} == {"live"}
            ready = service.get("/ready")
            assert ready.status == 200
            assert ready.json["engines"]["dead"].startswith("the engine is not up")
    finally:
        second.stop()


def test_a_request_fails_over_before_its_first_byte_and_never_after(tmp_path: Path) -> None:
    """The first replica gets the request and dies, before or after its first frame; the second one is free."""
    replicas = [start_mock(tmp_path / f"{i}.log") for i in range(2)]
    try:
        one = one_engine(8)
        engines = {f"e{i}": one | {"port": replica.port} for i, replica in enumerate(replicas)}
        with serving(tmp_path / "two", engines=engines) as service, ThreadPoolExecutor(1) as pool:
            victim: dict[str, int] = {}

            def send(text: str) -> Future[Response]:
                response = pool.submit(service.post, "/v1/chat/completions", chat(text, stream=True))

                def taken() -> bool:
                    active = [http(replica.url + "/stats").json["active"] for replica in replicas]
                    victim["index"] = active.index(max(active))
                    return bool(sum(active) == 1)

                wait_until(taken, "a replica has it", 5)
                return response

            response = send("fake: tokens=3 ttft_ms=1500")
            index = victim["index"]
            replicas[index].stop(signal.SIGKILL)
            moved = response.result(15)
            assert (moved.status, moved.body.count(b"[DONE]")) == (200, 1)
            assert service.row(moved)["engine"] == f"e{1 - index}"
            replicas[index] = start_mock(tmp_path / "again.log", port=replicas[index].port)
            wait_until(lambda: service.get("/ready").json["engines"][f"e{index}"] == "ready", "it is up again", 10)
            begun = send("fake: tokens=200 itl_ms=20 ttft_ms=10")
            reached = victim["index"]
            wait_until(lambda: bool(http(replicas[reached].url + "/stats").json["tokens"] > 20), "tokens flow", 5)
            replicas[reached].stop(signal.SIGKILL)
            cut = begun.result(15)
            event = last_event(cut.body)
            assert event["error"]["code"] == "engine_failed"
            assert cut.body.count(b'"role":"assistant"') == 1, "one stream has one response"
    finally:
        for replica in replicas:
            replica.stop()


async def test_a_chat_stays_on_its_replica_until_that_is_much_busier(tmp_path: Path) -> None:
    """Bounded loads: of 6 requests of one chat at most 1.25 times the mean, 4, are on one of two replicas."""
    replicas = [start_mock(tmp_path / f"{i}.log") for i in range(2)]
    try:
        one = one_engine(8)
        engines = {f"e{i}": one | {"port": replica.port} for i, replica in enumerate(replicas)}
        with serving(tmp_path / "two", engines=engines) as service:

            def active() -> list[int]:
                return [http(replica.url + "/stats").json["active"] for replica in replicas]

            def running(number: int) -> bool:
                return sum(active()) == number

            writers = []
            seen = []
            for number in range(1, 7):
                writers.append((await open_stream(service, SLOW_STREAM))[1])
                await asyncio.to_thread(wait_until, partial(running, number), "it runs", 5)
                seen.append(max(active()))
            assert seen[:2] == [1, 2], "the chat's own replica gets it while it has free slots"
            assert seen[-1] <= 4
            for writer in writers:
                writer.transport.abort()
            await asyncio.to_thread(wait_until, partial(running, 0), "the engines see the aborts", 5)
            again = service.post(
                "/v1/chat/completions", chat("fake: tokens=2000 itl_ms=20 ttft_ms=20", max_tokens=1)
            )
            own = service.row(again)["engine"]
            first = service.rows()[0]["engine"]
            assert own == first
    finally:
        for replica in replicas:
            replica.stop()


async def test_a_slow_reader_causes_back_pressure_and_little_memory(service: RunningService) -> None:
    def resident_mib() -> int:
        text = Path(f"/proc/{service.gateway.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) // 1024

    before, rows = resident_mib(), len(service.rows())
    reader, writer = await open_stream(service, chat("fake: tokens=1000000 itl_ms=0 ttft_ms=1", stream=True))
    await reader.readuntil(b"quick")

    def stalled() -> bool:
        before = service.stats()["tokens"]
        time.sleep(0.2)
        return service.stats()["tokens"] == before

    await asyncio.to_thread(wait_until, stalled, "the engine generates no more", 15)
    assert resident_mib() - before < 20
    writer.transport.abort()
    await asyncio.to_thread(wait_until, lambda: service.stats()["active"] == 0, "the engine stops", 2)
    assert (await asyncio.to_thread(service.wait_rows, rows + 1))[-1]["outcome"] == "aborted"


def test_concurrent_load_leaves_one_row_per_request(service: RunningService) -> None:
    def one(i: int) -> str:
        response = service.post("/v1/chat/completions", chat("fake: itl_ms=1", stream=i % 2 == 0))
        assert response.status == 200
        return response.headers["x-request-id"]

    with ThreadPoolExecutor(20) as clients:
        ids = set(clients.map(one, range(60)))
    assert len(ids) == 60
    wait_until(lambda: ids <= {row["request_id"] for row in service.rows()}, "all rows", 5)
    mine = [row for row in service.rows() if row["request_id"] in ids]
    assert (len(mine), {row["outcome"] for row in mine}) == (60, {"ok"})
