"""The upstream pool against a real socket: reuse, holding back, deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import EngineFailedError, EngineTimeoutError, EngineUnavailableError, RequestError
from appliance.http1.client import Pool, UpstreamCall
from appliance.http1.writer import WriteCoalescer
from tests.ports import free_port

Serve = Callable[[int, asyncio.StreamWriter], None]


@asynccontextmanager
async def engine(answer: Serve) -> AsyncIterator[tuple[Pool, list[int]]]:
    """A server that answers request number n of all with ``answer``, and the connections it saw."""
    seen: list[int] = []
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        me = len(set(seen))
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                seen.append(me)
                count += 1
                answer(count, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = a_pool(port)
    try:
        yield pool, seen
    finally:
        pool.close()
        server.close()


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def a_pool(port: int) -> Pool:
    outbox = WriteCoalescer(asyncio.get_running_loop())
    return Pool(port, outbox, connect_timeout_s=1, first_byte_timeout_s=0.5, stall_timeout_s=0.5)


class ScriptedResponse:
    """One answer as it comes."""

    def __init__(self, pool: Pool) -> None:
        self.status = 0
        self.body = b""
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.call: UpstreamCall = pool.post(self, b"/x", b"{}", b"x-request-id: id")

    def on_head(self, status: int, content_type: bytes) -> None:
        self.status = status

    def on_data(self, data: bytes) -> None:
        self.body += data

    def on_end(self) -> None:
        self.done.set_result(self.body)

    def crashed(self, error: Exception) -> None:
        self.done.set_exception(error)

    def on_failure(self, failure: RequestError) -> None:
        self.done.set_exception(failure)


async def ask(pool: Pool) -> bytes:
    async with asyncio.timeout(5):
        return await ScriptedResponse(pool).done


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition is the kernel's, it has no event
            await asyncio.sleep(0.005)


async def test_a_connection_is_reused() -> None:
    async with engine(lambda _, writer: writer.write(whole(b"hello"))) as (pool, seen):
        assert [await ask(pool) for _ in range(3)] == [b"hello"] * 3
        assert seen == [0, 0, 0]


BIG = b"x" * 20_000_000


async def test_an_answer_held_back_waits_in_the_socket_and_comes_whole() -> None:
    """While we hold the engine back it cannot speak: nothing more arrives, and its deadline stands still."""
    async with engine(lambda _, writer: writer.write(whole(BIG))) as (pool, _):
        answer = ScriptedResponse(pool)
        await until(lambda: bool(answer.body))
        answer.call.pause()
        held = len(answer.body)
        await asyncio.sleep(1.5)  # three times the stall timeout
        assert len(answer.body) == held < len(BIG)
        answer.call.resume()
        async with asyncio.timeout(5):
            assert await answer.done == BIG


async def test_an_abandoned_answer_closes_its_connection_and_the_next_one_gets_another() -> None:
    async with engine(lambda n, writer: writer.write(whole(BIG if n == 1 else b"small"))) as (pool, seen):
        answer = ScriptedResponse(pool)
        await until(lambda: bool(answer.body))
        answer.call.cancel()
        assert await ask(pool) == b"small"
        assert seen == [0, 1]
        assert not answer.done.done()


async def test_an_engine_that_talks_unasked_is_not_believed() -> None:
    """What it says beside an answer must never become the next one's."""

    def twice(n: int, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"hello") + (whole(b"a lie") if n == 1 else b""))

    async with engine(twice) as (pool, _):
        assert (await ask(pool)).startswith(b"hello")
        assert await ask(pool) == b"hello"


async def test_a_connection_closed_while_idle_is_replaced_once() -> None:
    def once(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"hello"))
        writer.close()

    async with engine(once) as (pool, seen):
        assert [await ask(pool) for _ in range(3)] == [b"hello"] * 3
        assert seen == [0, 1, 2]


async def test_idle_connections_that_the_engine_closed_do_not_stay_behind() -> None:
    writers: list[asyncio.StreamWriter] = []

    def keep(_: int, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(whole(b"hello"))

    async with engine(keep) as (pool, _):
        first, second = ScriptedResponse(pool), ScriptedResponse(pool)
        assert [await first.done, await second.done] == [b"hello", b"hello"]
        assert pool.idle == 2
        for writer in writers:
            writer.close()
        await until(lambda: pool.idle == 0)


async def test_garbage_silence_and_nobody() -> None:
    async with engine(lambda _, writer: writer.write(b"hello, I am no engine\r\n\r\n")) as (pool, _):
        with pytest.raises(EngineFailedError, match="did not answer in HTTP"):
            await ask(pool)
    async with engine(lambda *_: None) as (pool, _):
        with pytest.raises(EngineTimeoutError, match="did not begin its answer"):
            await ask(pool)
    async with engine(lambda _, writer: writer.write(whole(b"hello")[:-1])) as (pool, _):
        with pytest.raises(EngineTimeoutError, match="did not go on with its answer"):
            await ask(pool)
    with pytest.raises(EngineUnavailableError, match="is not up"):
        await ask(a_pool(free_port()))


async def test_closing_the_pool_ends_what_runs() -> None:
    async with engine(lambda *_: None) as (pool, seen):
        asking = asyncio.create_task(ask(pool))
        await until(lambda: bool(seen))
        pool.close()
        with pytest.raises(EngineFailedError, match="the gateway is stopping"):
            await asking


class Pausing(ScriptedResponse):
    """An answer whose client lags at event ``pause_at`` and catches up after ``resume_after`` turns, or never."""

    def __init__(self, pool: Pool, pause_at: int, resume_after: int | None) -> None:
        self.events = 0
        self.pause_at = pause_at
        self.resume_after = resume_after
        super().__init__(pool)

    def lag(self) -> None:
        self.events += 1
        if self.events == self.pause_at:
            self.call.pause()
            if self.resume_after is not None:
                self.catch_up(self.resume_after)

    def catch_up(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self.catch_up, turns - 1)
        else:
            self.call.resume()

    def on_head(self, status: int, content_type: bytes) -> None:
        super().on_head(status, content_type)
        self.lag()

    def on_data(self, data: bytes) -> None:
        super().on_data(data)
        self.lag()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([1, 100, 70_000, 1_000_000]), min_size=1, max_size=4),
    st.integers(1, 6),
    st.none() | st.integers(0, 5),
    st.booleans(),
)
def test_the_next_request_is_answered_wherever_the_client_before_it_lagged(
    sizes: list[int], pause_at: int, resume_after: int | None, chunked: bool
) -> None:
    """A pause belongs to its answer: it never outlives it, also where it comes with the answer's last byte."""

    def answer(count: int, writer: asyncio.StreamWriter) -> None:
        if count > 1:
            writer.write(whole(b"next"))
            return
        if chunked:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % sum(sizes))
        for size in sizes:
            writer.write(b"%x\r\n%s\r\n" % (size, b"x" * size) if chunked else b"x" * size)
        if chunked:
            writer.write(b"0\r\n\r\n")

    async def run() -> None:
        async with engine(answer) as (pool, _):
            first = Pausing(pool, pause_at, resume_after)
            held = False
            try:
                patience = 0.2 if resume_after is None else 10
                assert len(await asyncio.wait_for(asyncio.shield(first.done), patience)) == sum(sizes)
            except TimeoutError:
                held = True
                assert resume_after is None, "a client that caught up gets the rest"
                first.call.cancel()
            assert await asyncio.wait_for(ScriptedResponse(pool).done, 10) == b"next", held

    asyncio.run(run())


@pytest.mark.parametrize(
    "left", [b"x", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"\r\nHTTP/1.1 500 X\r\n\r\n"]
)
async def test_bytes_after_an_answer_reach_no_other_request(left: bytes) -> None:
    """They came with the answer's last byte, before anything was asked: the connection is not used again."""

    def answer(count: int, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"%d" % count) + (left if count == 1 else b""))

    async with engine(answer) as (pool, seen):
        assert await ScriptedResponse(pool).done == b"1"
        assert await asyncio.wait_for(ScriptedResponse(pool).done, 5) == b"2"
        assert seen == [0, 1]
