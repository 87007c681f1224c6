"""Responses as bytes, and writes that are collected while the loop is busy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
import uvloop

from appliance.http1.types import JSON
from appliance.http1.writer import BUSY, WriteCoalescer, encode_response, stream_head


class RecordingTransport:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False


class ManualLoop:
    """An event loop whose clock and turns the test moves."""

    def __init__(self) -> None:
        self.now = 1.0
        self._callbacks: list[Callable[[], None]] = []

    def as_loop(self) -> asyncio.AbstractEventLoop:
        return cast("asyncio.AbstractEventLoop", self)

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        """End the turn: run what was scheduled in it."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


@pytest.fixture
def turns() -> ManualLoop:
    return ManualLoop()


@pytest.fixture
def transport() -> RecordingTransport:
    return RecordingTransport()


def as_transport(transport: RecordingTransport) -> asyncio.Transport:
    return cast("asyncio.Transport", transport)


def test_a_response_has_its_type_length_and_headers() -> None:
    assert encode_response(200, b"{}", JSON, b"x: y\r\n", close=False) == (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx: y\r\ncontent-length: 2\r\n\r\n{}"
    )


def test_the_last_response_of_a_connection_closes_it() -> None:
    for data in (
        encode_response(404, b"", b"text/plain", b"", close=True),
        encode_response(204, b"", JSON, b"", close=True),
        stream_head(200, b"", chunked=False, close=True),
    ):
        assert b"\r\nconnection: close\r\n" in data


def test_a_response_without_content_has_no_length() -> None:
    assert encode_response(204, b"", JSON, b"allow: GET\r\n", close=False) == (
        b"HTTP/1.1 204 No Content\r\nallow: GET\r\n\r\n"
    )


def test_an_unregistered_status_has_an_empty_phrase() -> None:
    assert encode_response(599, b"", JSON, b"", close=False).startswith(b"HTTP/1.1 599 \r\n")


@pytest.mark.parametrize("chunked", [True, False])
def test_a_stream_is_chunked_unless_the_client_reads_no_chunks(chunked: bool) -> None:
    head = stream_head(200, b"x: y\r\n", chunked=chunked, close=False)
    assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream")
    assert head.endswith(b"\r\n\r\n")
    assert (b"\r\ntransfer-encoding: chunked\r\n" in head) is chunked


def test_few_writes_are_sent_directly(transport: RecordingTransport, turns: ManualLoop) -> None:
    coalescer = WriteCoalescer(turns.as_loop())
    for _ in range(3 * BUSY):
        turns.now += 0.001
        coalescer.write(as_transport(transport), b"a")
    assert len(transport.written) == 3 * BUSY


def test_many_writes_of_a_turn_are_sent_in_order_at_its_end(
    transport: RecordingTransport, turns: ManualLoop
) -> None:
    coalescer = WriteCoalescer(turns.as_loop())
    sent = [b"%d" % number for number in range(2 * BUSY)]
    for data in sent:
        coalescer.write(as_transport(transport), data)
    assert transport.written == sent[: BUSY - 1]
    turns.end()
    assert transport.written == sent


def test_flush_sends_what_is_collected(transport: RecordingTransport, turns: ManualLoop) -> None:
    coalescer = WriteCoalescer(turns.as_loop())
    for _ in range(2 * BUSY):
        coalescer.write(as_transport(transport), b"a")
    coalescer.flush()
    assert len(transport.written) == 2 * BUSY
    turns.end()
    assert len(transport.written) == 2 * BUSY


def test_writes_are_direct_again_after_a_turn_with_few(transport: RecordingTransport, turns: ManualLoop) -> None:
    coalescer = WriteCoalescer(turns.as_loop())
    for _ in range(BUSY):
        coalescer.write(as_transport(transport), b"a")
    turns.end()
    turns.now += 0.001
    coalescer.write(as_transport(transport), b"b")
    assert transport.written[-1] == b"b"


def test_a_connection_that_is_lost_in_this_turn_costs_the_others_nothing() -> None:
    """On uvloop, whose transports raise if they are written to after they were lost."""

    failures: list[dict[str, object]] = []

    class Received(asyncio.Protocol):
        data = b""

        def __init__(self) -> None:
            self.ready = asyncio.Event()

        def data_received(self, data: bytes) -> None:
            self.data += data
            self.ready.set()

    async def both() -> bytes:
        loop = asyncio.get_running_loop()
        received = Received()

        def failed(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
            failures.append(context)
            received.ready.set()

        loop.set_exception_handler(failed)
        server = await loop.create_server(lambda: received, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        dead, _ = await loop.create_connection(asyncio.Protocol, *address)
        live, _ = await loop.create_connection(asyncio.Protocol, *address)
        writer = WriteCoalescer(loop)
        # The loss is reported before the turn's writes are sent.
        dead.abort()
        for _ in range(BUSY):
            writer.write(dead, b"dead")
        writer.write(live, b"live")
        await received.ready.wait()
        live.close()
        server.close()
        return received.data

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(asyncio.wait_for(both(), 10)) == b"live"
    assert not failures
