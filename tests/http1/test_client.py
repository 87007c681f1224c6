"""The upstream pool with real sockets: reuse, back-pressure, deadlines, failures."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import EngineFailedError, EngineTimeoutError, EngineUnavailableError, RequestError
from appliance.http1.client import Pool, UpstreamConnection
from appliance.http1.writer import WriteCoalescer
from tests.http1.conftest import until

Respond = Callable[[int, asyncio.StreamWriter], None]


@asynccontextmanager
async def engine(respond: Respond) -> AsyncIterator[tuple[Pool, list[int]]]:
    """Serve request number n (from 1) with ``respond``; yield a pool and the connection of each request."""
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = len(set(connections))
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
                connections.append(me)
                respond(len(connections), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = new_pool(server.sockets[0].getsockname()[1])
    try:
        yield pool, connections
    finally:
        pool.close()
        server.close()


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def new_pool(port: int) -> Pool:
    coalescer = WriteCoalescer(asyncio.get_running_loop())
    return Pool(port, coalescer, connect_timeout_s=1, first_byte_timeout_s=0.5, stall_timeout_s=0.5)


class CollectedResponse:
    """Posts a request and collects its response; ``done`` has the body or the failure."""

    def __init__(self, pool: Pool) -> None:
        self.status = 0
        self.body = b""
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.call = pool.post(self, b"/x", b"{}", b"x-request-id: id")

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


async def post(pool: Pool) -> bytes:
    async with asyncio.timeout(5):
        return await CollectedResponse(pool).done


# Reuse.


async def test_a_connection_is_reused() -> None:
    async with engine(lambda _, writer: writer.write(whole(b"hello"))) as (pool, connections):
        assert [await post(pool) for _ in range(3)] == [b"hello"] * 3
        assert connections == [0, 0, 0]


async def test_a_connection_that_was_closed_while_idle_is_replaced() -> None:
    def once(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"hello"))
        writer.close()

    async with engine(once) as (pool, connections):
        assert [await post(pool) for _ in range(3)] == [b"hello"] * 3
        assert connections == [0, 1, 2]


async def test_idle_connections_that_the_engine_closed_are_removed() -> None:
    writers: list[asyncio.StreamWriter] = []

    def keep(_: int, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(whole(b"hello"))

    async with engine(keep) as (pool, _):
        first, second = CollectedResponse(pool), CollectedResponse(pool)
        assert [await first.done, await second.done] == [b"hello", b"hello"]
        assert len(pool.idle) == 2
        for writer in writers:
            writer.close()
        await until(lambda: not pool.idle)


@pytest.mark.parametrize(
    "extra",
    [
        b"x",
        whole(b"evil"),
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        b"\r\nHTTP/1.1 500 X\r\n\r\n",
        b"HTTP/1.1 2",
    ],
)
async def test_bytes_after_a_response_reach_no_other_request(extra: bytes) -> None:
    """They arrive with the response's last byte, before the next request: the connection is not used again."""

    def respond(count: int, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"%d" % count) + (extra if count == 1 else b""))

    async with engine(respond) as (pool, connections):
        assert [await post(pool), await post(pool)] == [b"1", b"2"]
        assert connections == [0, 1]


async def test_an_interim_status_is_skipped() -> None:
    async with engine(lambda _, writer: writer.write(b"HTTP/1.1 102 X\r\n\r\n" + whole(b"hello"))) as (pool, _):
        response = CollectedResponse(pool)
        assert await response.done == b"hello"
        assert response.status == 200


# Failures.


async def test_a_response_that_is_not_http_is_a_failure() -> None:
    async with engine(lambda _, writer: writer.write(b"hello, this is not HTTP\r\n\r\n")) as (pool, _):
        with pytest.raises(EngineFailedError, match="did not respond in HTTP"):
            await post(pool)


async def test_an_engine_that_sends_nothing_times_out() -> None:
    async with engine(lambda *_: None) as (pool, _):
        with pytest.raises(EngineTimeoutError, match="did not begin its response"):
            await post(pool)


async def test_an_engine_that_stops_inside_its_response_times_out() -> None:
    async with engine(lambda _, writer: writer.write(whole(b"hello")[:-1])) as (pool, _):
        with pytest.raises(EngineTimeoutError, match="did not continue its response"):
            await post(pool)


async def test_an_engine_that_closes_inside_its_response_is_a_failure() -> None:
    def cut(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"hello")[:-1])
        writer.close()

    async with engine(cut) as (pool, _):
        with pytest.raises(EngineFailedError, match="before its response was complete"):
            await post(pool)


async def test_an_engine_that_does_not_listen_is_unavailable() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(EngineUnavailableError, match="is not up"):
            await post(new_pool(bound.getsockname()[1]))


async def test_closing_the_pool_ends_running_calls() -> None:
    async with engine(lambda *_: None) as (pool, connections):
        response = CollectedResponse(pool)
        await until(lambda: connections)
        pool.close()
        with pytest.raises(EngineFailedError, match="the gateway is stopping"):
            await response.done


class CrashingResponse(CollectedResponse):
    """A response whose sink raises at its head or at its data."""

    def __init__(self, pool: Pool, event: str) -> None:
        super().__init__(pool)
        self.event = event

    def on_head(self, status: int, content_type: bytes) -> None:
        if self.event == "head":
            raise ValueError(self.event)

    def on_data(self, data: bytes) -> None:
        if self.event == "data":
            raise ValueError(self.event)


@pytest.mark.parametrize("event", ["head", "data"])
async def test_an_error_of_the_sink_is_reported_to_it_alone(event: str) -> None:
    async with engine(lambda _, writer: writer.write(whole(b"hello"))) as (pool, connections):
        with pytest.raises(ValueError, match=event):
            await CrashingResponse(pool, event).done
        assert await post(pool) == b"hello"
        assert connections == [0, 1]


async def test_a_probe_returns_status_and_body_on_a_connection_of_its_own() -> None:
    async with engine(lambda _, writer: writer.write(whole(b"hello"))) as (pool, connections):
        assert await post(pool) == b"hello"
        assert await pool.probe(b"/x", b"{}", 5) == (200, b"hello")
        assert connections == [0, 1]


async def test_a_probe_times_out() -> None:
    async with engine(lambda *_: None) as (pool, _):
        with pytest.raises(EngineTimeoutError):
            await pool.probe(b"/x", b"{}", 0.1)


# Cancelling and back-pressure.

BIG = b"x" * 20_000_000


async def test_a_cancelled_call_closes_its_connection() -> None:
    async with engine(lambda n, writer: writer.write(whole(BIG if n == 1 else b"small"))) as (pool, connections):
        response = CollectedResponse(pool)
        await until(lambda: response.body)
        response.call.cancel()
        assert await post(pool) == b"small"
        assert connections == [0, 1]
        assert not response.done.done()


async def test_a_call_that_is_cancelled_before_its_connection_opens_is_not_sent() -> None:
    async with engine(lambda _, writer: writer.write(whole(b"hello"))) as (pool, connections):
        response = CollectedResponse(pool)
        response.call.cancel()
        assert await post(pool) == b"hello"
        assert connections == [0]
        assert not response.done.done()


@pytest.mark.parametrize("early", [False, True], ids=["during the response", "before the connection opens"])
async def test_a_paused_response_waits_in_the_socket_without_a_deadline(early: bool) -> None:
    async with engine(lambda _, writer: writer.write(whole(BIG))) as (pool, _):
        response = CollectedResponse(pool)
        if not early:
            await until(lambda: response.body)
        response.call.pause()
        held = len(response.body)
        await asyncio.sleep(1.5)  # three times the stall timeout
        assert len(response.body) == held < len(BIG)
        response.call.resume()
        async with asyncio.timeout(5):
            assert await response.done == BIG


class PausingResponse(CollectedResponse):
    """A response that is paused at event ``pause_at`` and resumed after ``resume_after`` turns, or never."""

    def __init__(self, pool: Pool, pause_at: int, resume_after: int | None) -> None:
        self.events = 0
        self.pause_at = pause_at
        self.resume_after = resume_after
        super().__init__(pool)

    def count(self) -> None:
        self.events += 1
        if self.events == self.pause_at:
            self.call.pause()
            if self.resume_after is not None:
                self.resume(self.resume_after)

    def resume(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self.resume, turns - 1)
        else:
            self.call.resume()

    def on_head(self, status: int, content_type: bytes) -> None:
        super().on_head(status, content_type)
        self.count()

    def on_data(self, data: bytes) -> None:
        super().on_data(data)
        self.count()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([1, 100, 70_000, 1_000_000]), min_size=1, max_size=4),
    st.integers(1, 6),
    st.none() | st.integers(0, 5),
    st.booleans(),
)
def test_a_pause_never_delays_the_next_request(
    sizes: list[int], pause_at: int, resume_after: int | None, chunked: bool
) -> None:
    """A pause belongs to its response and ends with it, even if it begins with the response's last byte."""

    def respond(count: int, writer: asyncio.StreamWriter) -> None:
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
        async with engine(respond) as (pool, _):
            first = PausingResponse(pool, pause_at, resume_after)
            held = False
            try:
                patience = 0.2 if resume_after is None else 10
                assert len(await asyncio.wait_for(asyncio.shield(first.done), patience)) == sum(sizes)
            except TimeoutError:
                held = True
                assert resume_after is None, "a resumed response is complete"
                first.call.cancel()
            assert await asyncio.wait_for(CollectedResponse(pool).done, 10) == b"next", held

    asyncio.run(run())


async def test_a_closed_connection_is_freed_without_the_garbage_collector() -> None:
    def connections() -> list[object]:
        return [found for found in gc.get_objects() if isinstance(found, UpstreamConnection)]

    def once(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"hello"))
        writer.close()

    gc.collect()
    assert not connections()
    gc.disable()
    try:
        async with engine(once) as (pool, _):
            assert await post(pool) == b"hello"
            await until(lambda: not connections())
    finally:
        gc.enable()
