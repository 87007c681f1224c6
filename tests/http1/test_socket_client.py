"""The client for a Unix socket, with real sockets: heads, back-pressure, failures."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.http1.socket_client import Headers, SocketCall, SocketFailure
from appliance.system.unix_socket import address
from tests.http1.conftest import until

HEAD = b"GET /x?y=z HTTP/1.1\r\nhost: assistant\r\nconnection: close\r\n\r\n"
Write = Callable[[asyncio.StreamWriter], None]


class ReceivedResponse:
    """Collects a response; ``done`` has the body, or a failure."""

    def __init__(self, crash: str = "") -> None:
        self.status = 0
        self.headers: Headers = []
        self.pieces: list[bytes] = []
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.failure: SocketFailure | None = None
        self._crash = crash

    def on_head(self, status: int, headers: Headers) -> None:
        self._crash_in("head")
        self.status, self.headers = status, headers

    def on_data(self, data: bytes) -> None:
        self._crash_in("data")
        self.pieces.append(data)

    def on_end(self) -> None:
        self._crash_in("end")
        self.done.set_result(b"".join(self.pieces))

    def on_failure(self, failure: SocketFailure) -> None:
        self.failure = failure
        self.done.set_result(b"".join(self.pieces))

    def crashed(self, error: Exception) -> None:
        self.done.set_exception(error)

    def _crash_in(self, event: str) -> None:
        if self._crash == event:
            raise ZeroDivisionError(event)


@asynccontextmanager
async def listening(path: Path, write: Write, *, hold: bool = False) -> AsyncIterator[list[bytes]]:
    """Respond with ``write``; yield the heads that arrive. With ``hold`` the connection stays open."""
    heads: list[bytes] = []
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        write(writer)
        if hold and await reader.read() == b"":
            heads.append(b"closed")
        writer.close()
        ended.set()

    with address(path) as name:
        server = await asyncio.start_unix_server(serve, name)
    try:
        yield heads
    finally:
        server.close()


def call(path: Path, sink: ReceivedResponse, body: bytes = b"", *, bodiless: bool = False) -> SocketCall:
    return SocketCall(path, sink, head=HEAD, body=body, bodiless=bodiless, connect_s=5)


@pytest.fixture(params=["short", "long" * 40])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / str(request.param)
    folder.mkdir()
    return folder / "s"


async def test_a_response_has_its_status_headers_and_body(path: Path) -> None:
    text = b"HTTP/1.1 404 Not Found\r\nX-A: 1\r\nx-a: 2\r\ncontent-length: 4\r\n\r\nabcd"
    async with listening(
        path, lambda writer: writer.write(b"HTTP/1.1 103 Early\r\nx-b: 0\r\n\r\n" + text)
    ) as heads:
        sink = ReceivedResponse()
        call(path, sink)
        assert await sink.done == b"abcd"
    assert sink.status == 404
    assert sink.headers == [(b"x-a", b"1"), (b"x-a", b"2"), (b"content-length", b"4")]
    assert heads == [HEAD]


async def test_a_response_to_head_ends_with_its_head(tmp_path: Path) -> None:
    text = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
    async with listening(tmp_path / "s", lambda writer: writer.write(text), hold=True):
        sink = ReceivedResponse()
        call(tmp_path / "s", sink, bodiless=True)
        assert await asyncio.wait_for(sink.done, 20) == b""
    assert (sink.status, sink.failure) == (200, None)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        (b"", SocketFailure.CUT),
        (b"HTTP/1.1 200 OK\r\ncontent-le", SocketFailure.CUT),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc", SocketFailure.CUT),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", SocketFailure.CUT),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", SocketFailure.CUT),
        (b"SSH-2.0\r\n\r\n", SocketFailure.GARBLED),
        (b"HTTP/1.1 200 OK\r\nx: a\nb\r\ncontent-length: 0\r\ncontent-length: 1\r\n\r\n", SocketFailure.GARBLED),
    ],
)
async def test_an_incomplete_or_invalid_response_is_a_failure(
    tmp_path: Path, text: bytes, failure: SocketFailure
) -> None:
    async with listening(tmp_path / "s", lambda writer: writer.write(text)):
        sink = ReceivedResponse()
        call(tmp_path / "s", sink)
        await asyncio.wait_for(sink.done, 20)
    assert sink.failure is failure


async def test_an_absent_socket_is_a_failure_of_its_own(path: Path) -> None:
    sink = ReceivedResponse()
    call(path, sink)
    await asyncio.wait_for(sink.done, 20)
    assert sink.failure is SocketFailure.ABSENT
    other = ReceivedResponse()
    call(path.parent, other)
    await asyncio.wait_for(other.done, 20)
    assert other.failure is SocketFailure.ABSENT


async def test_bytes_after_the_response_are_ignored(tmp_path: Path) -> None:
    text = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\naHTTP/1.1 500 X\r\n\r\nmore"
    async with listening(tmp_path / "s", lambda writer: writer.write(text)):
        sink = ReceivedResponse()
        call(tmp_path / "s", sink)
        assert await sink.done == b"a"
    assert (sink.status, sink.failure) == (200, None)


async def test_a_paused_response_waits_in_the_socket(tmp_path: Path) -> None:
    size = 8 * 2**20
    text = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size)
    async with listening(tmp_path / "s", lambda writer: writer.write(text)):
        sink = ReceivedResponse()
        running = call(tmp_path / "s", sink)
        running.pause()
        await until(lambda: running.phase.value == "sent")
        assert (sink.status, sink.pieces) == (0, [])
        running.resume()
        assert len(await asyncio.wait_for(sink.done, 30)) == size


@pytest.mark.parametrize("early", [True, False])
async def test_a_cancelled_call_closes_its_connection_without_an_event(tmp_path: Path, early: bool) -> None:
    text = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\na"
    async with listening(tmp_path / "s", lambda writer: writer.write(text), hold=True) as heads:
        sink = ReceivedResponse()
        running = call(tmp_path / "s", sink)
        if not early:
            await until(lambda: sink.pieces == [b"a"])
        running.cancel()
        if not early:
            await until(lambda: heads[-1:] == [b"closed"])
        else:
            await asyncio.sleep(0)
            assert heads == []
        assert not sink.done.done()


@pytest.mark.parametrize("event", ["head", "data", "end"])
async def test_an_error_of_the_sink_is_reported_to_it_alone(tmp_path: Path, event: str) -> None:
    text = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na"
    async with listening(tmp_path / "s", lambda writer: writer.write(text)):
        sink = ReceivedResponse(event)
        call(tmp_path / "s", sink)
        with pytest.raises(ZeroDivisionError, match=event):
            await asyncio.wait_for(sink.done, 20)
        other = ReceivedResponse()
        call(tmp_path / "s", other)
        assert await other.done == b"a"


async def test_a_call_is_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    def calls() -> int:
        return sum(isinstance(found, SocketCall) for found in gc.get_objects())

    text = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na"
    gc.collect()
    gc.disable()
    try:
        before = calls()
        async with listening(tmp_path / "s", lambda writer: writer.write(text)):
            for _ in range(5):
                sink = ReceivedResponse()
                call(tmp_path / "s", sink)
                await sink.done
            await until(lambda: calls() == before)
    finally:
        gc.enable()
