"""The upstream pool against a real socket: reuse, holding back, deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from appliance.errors import EngineFailedError, EngineTimeoutError, EngineUnavailableError
from appliance.gateway.upstream import HIGH_WATER, Connection, Pool
from tests.conftest import free_port

Answer = Callable[[int, asyncio.StreamWriter], None]


@asynccontextmanager
async def engine(answer: Answer) -> AsyncIterator[tuple[Pool, list[int]]]:
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
    pool = Pool(port, connect_timeout_s=1, first_byte_timeout_s=0.5, stall_timeout_s=0.5)
    try:
        yield pool, seen
    finally:
        pool.close()
        server.close()


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


async def read_all(connection: Connection) -> bytes:
    pieces = []
    while piece := await connection.read():
        pieces.append(piece)
    return b"".join(pieces)


async def ask(pool: Pool) -> bytes:
    connection = await pool.send(b"/x", b"{}", b"id")
    try:
        return await read_all(connection)
    finally:
        pool.release(connection)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition is the kernel's, it has no event
            await asyncio.sleep(0.005)


async def test_a_connection_is_reused() -> None:
    async with engine(lambda _, writer: writer.write(whole(b"hello"))) as (pool, seen):
        assert [await ask(pool) for _ in range(3)] == [b"hello"] * 3
        assert seen == [0, 0, 0]


async def test_a_connection_held_back_is_not_reused() -> None:
    """Its answer is whole but nobody took it: reading is paused, so another answer on it would never come."""
    big = b"x" * (HIGH_WATER + 1)
    async with engine(lambda n, writer: writer.write(whole(big if n == 1 else b"small"))) as (pool, seen):
        connection = await pool.send(b"/x", b"{}", b"id")
        await until(lambda: connection.complete)
        pool.release(connection)
        async with asyncio.timeout(2):
            assert await ask(pool) == b"small"
        assert seen == [0, 1]


async def test_more_than_fits_waits_in_the_socket_and_comes_whole() -> None:
    body = b"x" * (HIGH_WATER * 20)
    async with engine(lambda _, writer: writer.write(whole(body))) as (pool, _):
        connection = await pool.send(b"/x", b"{}", b"id")
        await until(lambda: connection._paused)
        held = connection._size
        await asyncio.sleep(0.1)
        assert connection._size == held < HIGH_WATER * 3
        assert await read_all(connection) == body
        pool.release(connection)


async def test_a_slow_reader_is_no_silent_engine() -> None:
    """While we hold the engine back it cannot speak: its deadline stands still."""
    body = b"x" * (HIGH_WATER * 20)
    async with engine(lambda _, writer: writer.write(whole(body))) as (pool, _):
        connection = await pool.send(b"/x", b"{}", b"id")
        await asyncio.sleep(1.5)  # three times the stall timeout
        assert await read_all(connection) == body
        pool.release(connection)


async def test_a_connection_closed_while_idle_is_replaced_once() -> None:
    def once(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"hello"))
        writer.close()

    async with engine(once) as (pool, seen):
        assert [await ask(pool) for _ in range(3)] == [b"hello"] * 3
        assert seen == [0, 1, 2]


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
    nobody = Pool(free_port(), connect_timeout_s=1, first_byte_timeout_s=1, stall_timeout_s=1)
    with pytest.raises(EngineUnavailableError, match="is not up"):
        await ask(nobody)


async def test_closing_the_pool_ends_what_runs() -> None:
    async with engine(lambda *_: None) as (pool, seen):
        asking = asyncio.create_task(ask(pool))
        await until(lambda: bool(seen))
        pool.close()
        with pytest.raises(EngineFailedError, match="the gateway is stopping"):
            await asking


async def test_the_pool_counts_what_it_carries() -> None:
    async with engine(lambda n, writer: writer.write(whole(b"hello")) if n == 1 else None) as (pool, _):
        connection = await pool.send(b"/x", b"{}", b"id")
        assert pool.in_flight == 1
        await read_all(connection)
        pool.release(connection)
        assert pool.in_flight == 0
        asking = asyncio.create_task(ask(pool))
        await until(lambda: pool.in_flight == 1)
        with pytest.raises(EngineTimeoutError):
            await asking
        assert pool.in_flight == 0
    nobody = Pool(free_port(), connect_timeout_s=1, first_byte_timeout_s=1, stall_timeout_s=1)
    with pytest.raises(EngineUnavailableError):
        await ask(nobody)
    assert nobody.in_flight == 0
