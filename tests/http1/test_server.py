"""The server with a small application: order, refusals, slow readers, timeouts, and how connections end."""

from __future__ import annotations

import asyncio
import gc
import re
import socket

import pytest

from appliance.errors import NotFoundError
from appliance.http1.server import SWEEP_S, ClientConnection, Server
from appliance.http1.types import ClientResponder, Request, Timeouts
from tests.http1.conftest import EchoApplication, RecordedClient, connected, listening, send, until

HURRIED = Timeouts(head_s=0.1, body_s=0.1, idle_s=0.1, read_s=0.1)
CLOSE = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


def get(path: str, *lines: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/{version}", "host: x", *lines, "", ""]).encode()


def post(path: str, body: bytes, *lines: str) -> bytes:
    head = get(path, f"content-length: {len(body)}", *lines).replace(b"GET", b"POST", 1)
    return head + body


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def bodies(received: bytes) -> list[bytes]:
    """Return the bodies of plain responses."""
    return [part.partition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 ")[1:]]


async def accepted(server: Server) -> ClientConnection:
    """Return the server's side of the only connection."""
    await until(lambda: server.connections)
    return next(iter(server.connections))


# Requests and responses.


async def test_pipelined_requests_get_their_responses_in_order() -> None:
    async with listening(EchoApplication()) as (_, port):
        received = await send(port, get("/a") + post("/b", b"body") + get("/c") + CLOSE)
    assert bodies(received) == [b"/a ", b"/b body", b"/c ", b"/last "]


@pytest.mark.parametrize("reads", [1, 2])
async def test_a_pipelined_request_waits_for_the_response_before_it(reads: int) -> None:
    application = EchoApplication()
    waiting: list[ClientResponder] = []
    application.responses["/slow"] = lambda _, client: waiting.append(client)
    async with listening(application) as (server, port), connected(port) as (reader, writer):
        writer.write(get("/slow") + (CLOSE if reads == 1 else b""))
        await until(lambda: waiting)
        if reads == 2:
            paused = (await accepted(server)).transport.is_reading
            writer.write(CLOSE)
            await until(lambda: not paused())
        waiting[0].respond(200, b"slow")
        async with asyncio.timeout(5):
            received = await reader.read()
    assert bodies(received) == [b"slow", b"/last "]


async def test_the_application_completes_the_headers_of_every_response() -> None:
    application = EchoApplication()
    application.refused["/no"] = NotFoundError("no")
    async with listening(application) as (_, port):
        assert b"\r\nx-path: /last\r\n" in await send(port, CLOSE)
        assert b"\r\nx-path: /no\r\n" in await send(port, get("/no"))


async def test_a_head_request_gets_the_length_without_the_body() -> None:
    async with listening(EchoApplication()) as (_, port):
        received = await send(port, get("/a").replace(b"GET", b"HEAD") + CLOSE)
    assert bodies(received) == [b"", b"/last "]
    assert b"content-length: 3\r\n" in received


def stream(_: Request, client: ClientResponder) -> None:
    client.start_stream(200, b"")
    client.write(b"one")
    client.end_stream(b"two")


@pytest.mark.parametrize(("version", "body"), [("1.1", b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"), ("1.0", b"onetwo")])
async def test_a_stream_is_chunked_in_http_1_1_only(version: str, body: bytes) -> None:
    application = EchoApplication()
    application.responses["/stream"] = stream
    async with listening(application) as (_, port):
        received = await send(port, get("/stream", "connection: close", version=version))
    assert received.endswith(b"\r\n\r\n" + body)


async def test_100_continue_is_sent_when_the_body_is_awaited() -> None:
    async with listening(EchoApplication()) as (_, port), connected(port) as (reader, writer):
        head, body = post("/a", b"body", "expect: 100-continue", "connection: close").split(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        async with asyncio.timeout(5):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert (await reader.read()).endswith(b"/a body")


async def test_nothing_is_written_after_the_end_of_a_response() -> None:
    application = EchoApplication()

    def twice(_: Request, client: ClientResponder) -> None:
        client.respond(200, b"once")
        client.respond(200, b"twice")
        client.start_stream(200, b"")
        client.write(b"more")
        client.end_stream(b"more")

    application.responses["/twice"] = twice
    async with listening(application) as (_, port):
        assert bodies(await send(port, get("/twice") + CLOSE)) == [b"once", b"/last "]


async def test_an_unexpected_error_is_a_500_of_its_request_only() -> None:
    application = EchoApplication()

    def crash(request: Request, client: ClientResponder) -> None:
        raise ValueError(request.path)

    application.responses["/crash"] = crash
    async with listening(application) as (_, port):
        received = await send(port, get("/crash") + CLOSE)
    assert statuses(received) == [500, 200]


async def test_a_failure_after_the_response_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The response arrives; no further request can begin."""

    def fail(_: ClientConnection) -> None:
        raise ValueError

    monkeypatch.setattr(ClientConnection, "finish", fail)
    async with listening(EchoApplication()) as (_, port):
        assert bodies(await send(port, get("/a"))) == [b"/a "]


# Refusals.


async def test_a_refused_request_is_the_last_one_and_is_recorded() -> None:
    application = EchoApplication()
    application.refused["/no"] = error = NotFoundError("no")
    async with listening(application) as (_, port):
        received = await send(port, get("/a") + post("/no", b"body") + get("/b"))
    assert statuses(received) == [200, 404]
    assert application.broken == [("/no", error)]


async def test_a_refusal_waits_for_the_response_before_it() -> None:
    application = EchoApplication()
    application.refused["/no"] = NotFoundError("no")
    waiting: list[ClientResponder] = []
    application.responses["/slow"] = lambda _, client: waiting.append(client)
    async with listening(application) as (_, port), connected(port) as (reader, writer):
        writer.write(get("/slow") + get("/no"))
        await until(lambda: waiting)
        assert application.broken == []
        waiting[0].respond(200, b"slow")
        async with asyncio.timeout(5):
            assert statuses(await reader.read()) == [200, 404]


async def test_a_refused_client_that_still_sends_gets_its_response() -> None:
    application = EchoApplication()
    async with listening(application) as (_, port):
        received = await send(port, post("/a", b"x" * 3_000_000))
    assert statuses(received) == [413]


async def test_a_refused_client_that_sends_on_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.http1.server.LINGER_S", 0.1)

    def send_on_until_closed() -> bool:
        writer.write(b"x")
        return not server.connections

    async with listening(EchoApplication()) as (server, port), connected(port) as (reader, writer):
        writer.write(post("/a", b"x" * 2000))
        async with asyncio.timeout(5):
            assert statuses(await reader.read()) == [413]
            await until(send_on_until_closed)


async def test_bytes_that_are_not_http_are_400_and_close() -> None:
    async with listening(EchoApplication()) as (_, port):
        assert statuses(await send(port, b"hello\r\n\r\n" + CLOSE)) == [400]


# Clients that disconnect or do not read.


async def test_a_client_that_disconnects_is_reported_once() -> None:
    application = EchoApplication()
    recorded = RecordedClient()
    clients: list[ClientResponder] = []

    def wait(_: Request, client: ClientResponder) -> None:
        client.listener = recorded
        clients.append(client)

    application.responses["/wait"] = wait
    async with listening(application) as (server, port):
        async with connected(port) as (_, writer):
            writer.write(get("/wait"))
            await until(lambda: clients)
        async with asyncio.timeout(5):
            await recorded.gone
        clients[0].respond(200, b"late")
        assert not server.connections


async def test_a_client_that_disconnects_inside_a_body_is_recorded() -> None:
    application = EchoApplication()
    async with listening(application) as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(get("/a", "expect: 100-continue", "content-length: 10").replace(b"GET", b"POST"))
            await reader.readuntil(b"\r\n\r\n")
        await until(lambda: application.broken)
    assert application.broken == [("/a", None)]


BIG = b"x" * 30_000_000


async def test_a_slow_reader_stops_the_producer_until_it_reads() -> None:
    application = EchoApplication()
    recorded = RecordedClient()

    def flood(_: Request, client: ClientResponder) -> None:
        client.listener = recorded
        client.start_stream(200, b"")
        client.write(BIG)

    application.responses["/flood"] = flood
    async with listening(application) as (_, port), connected(port) as (reader, writer), asyncio.timeout(20):
        writer.write(get("/flood"))
        await recorded.slow
        assert not recorded.ready.done()
        await reader.readexactly(len(BIG))
        await recorded.ready


@pytest.mark.parametrize("reads", [1, 2])
async def test_no_response_starts_while_the_client_reads_none(reads: int) -> None:
    """The response before it is complete, but not read."""
    application = EchoApplication()
    started: list[str] = []

    def big(request: Request, client: ClientResponder) -> None:
        started.append(request.path)
        client.respond(200, BIG)

    application.responses |= {"/one": big, "/two": big}
    async with listening(application) as (server, port), connected(port) as (reader, writer), asyncio.timeout(20):
        writer.write(get("/one") + (get("/two") + CLOSE if reads == 1 else b""))
        transport = (await accepted(server)).transport
        await until(lambda: started)
        if reads == 2:
            writer.write(get("/two") + CLOSE)
        await until(lambda: not transport.is_reading())
        assert started == ["/one"]
        assert (await reader.read()).endswith(b"/last ")
        assert started == ["/one", "/two"]


# Timeouts: the sweep finds them, half a second later at most.


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (b"", []),
        (b"GET /a HT", [408]),
        (post("/a", b"body")[:-1], [408]),
        (get("/a"), [200]),
        (get("/a") + get("/b")[:-1], [200, 408]),
    ],
)
async def test_a_client_that_stops_sending_is_disconnected(sent: bytes, received: list[int]) -> None:
    async with listening(EchoApplication(), HURRIED) as (_, port):
        assert statuses(await send(port, sent)) == received


@pytest.mark.parametrize(
    ("timeouts", "sent", "received"),
    [
        (Timeouts(head_s=30, body_s=30, idle_s=0.1, read_s=30), get("/a"), [200]),
        (Timeouts(head_s=0.1, body_s=30, idle_s=30, read_s=30), get("/a") + b"\0GET /b HT", [200, 408]),
        (Timeouts(head_s=30, body_s=0.1, idle_s=30, read_s=30), post("/a", b"body")[:-1], [408]),
        (Timeouts(head_s=30, body_s=0.1, idle_s=30, read_s=30), get("/a") + post("/b", b"body")[:-1], [200, 408]),
        (
            Timeouts(head_s=30, body_s=0.1, idle_s=30, read_s=30),
            get("/a") + b"\0" + post("/b", b"b")[:-1],
            [200, 408],
        ),
    ],
    ids=["idle", "head", "body", "pipelined body", "body after a head"],
)
async def test_each_part_of_a_request_has_its_own_timeout(
    timeouts: Timeouts, sent: bytes, received: list[int]
) -> None:
    """A zero byte separates reads: the next one follows the response to the one before."""
    async with listening(EchoApplication(), timeouts) as (_, port), connected(port) as (reader, writer):
        async with asyncio.timeout(10):
            first, *rest = sent.split(b"\0")
            writer.write(first)
            seen = await reader.readuntil(b"/a ") if rest else b""
            for piece in rest:
                writer.write(piece)
            assert statuses(seen + await reader.read()) == received


async def test_bytes_do_not_extend_the_timeout_of_a_head() -> None:
    async with listening(EchoApplication(), HURRIED) as (_, port), connected(port) as (reader, writer):
        response = asyncio.ensure_future(reader.read())
        writer.write(b"GET /a HTTP/1.1\r\nx: ")

        def send_on_until_refused() -> bool:
            if not response.done():
                writer.write(b"x")
            return response.done()

        await until(send_on_until_refused)
        assert statuses(await response) == [408]


async def test_a_client_that_reads_nothing_is_disconnected() -> None:
    application = EchoApplication()
    application.responses["/big"] = lambda _, client: client.respond(200, BIG)
    async with listening(application, HURRIED) as (server, port), asyncio.timeout(10):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(get("/big"))
            await accepted(server)
            await until(lambda: not server.connections)


async def test_a_client_that_stays_after_the_last_response_is_disconnected() -> None:
    """It reads the response slowly, and its further request is not complete."""
    application = EchoApplication()
    waiting: list[ClientResponder] = []
    application.responses["/big"] = lambda _, client: waiting.append(client)
    timeouts = Timeouts(head_s=30, body_s=30, idle_s=30, read_s=0.1)
    async with listening(application, timeouts) as (server, port), connected(port) as (reader, writer):
        writer.write(get("/big", "connection: close") + b"GET")
        await until(lambda: waiting)
        waiting[0].respond(200, BIG)
        assert statuses(await reader.read()) == [200]
        await until(lambda: not server.connections)


async def test_a_response_that_is_produced_has_no_timeout() -> None:
    application = EchoApplication()

    def answer_later(_: Request, client: ClientResponder) -> None:
        asyncio.get_running_loop().call_later(2.5 * SWEEP_S, client.respond, 200, b"slow")

    application.responses["/slow"] = answer_later
    async with listening(application, HURRIED) as (_, port):
        assert bodies(await send(port, get("/slow", "connection: close"))) == [b"slow"]


# Drain and close.


async def test_drain_closes_idle_connections_and_waits_for_responses() -> None:
    application = EchoApplication()
    waiting: list[ClientResponder] = []
    application.responses["/slow"] = lambda _, client: waiting.append(client)
    async with (
        listening(application) as (server, port),
        connected(port) as (idle, _),
        connected(port) as (reader, writer),
        asyncio.timeout(10),
    ):
        writer.write(get("/slow"))
        await until(lambda: waiting)
        server.drain()
        assert await idle.read() == b""
        drained = asyncio.ensure_future(server.drained())
        await asyncio.sleep(0)
        assert not drained.done()
        waiting[0].respond(200, b"slow")
        await drained
        assert b"\r\nconnection: close\r\n" in await reader.read()
        await server.flushed()


async def test_a_connection_that_opens_during_drain_gets_one_response() -> None:
    async with listening(EchoApplication()) as (server, port):
        server.drain()
        received = await send(port, get("/a") + get("/b"))
    assert bodies(received) == [b"/a "]
    assert b"\r\nconnection: close\r\n" in received


async def test_an_incomplete_request_behind_the_last_response_is_recorded() -> None:
    application = EchoApplication()
    waiting: list[ClientResponder] = []
    application.responses["/slow"] = lambda _, client: waiting.append(client)
    heads: list[str] = []
    application.begun = heads.append
    async with listening(application) as (server, port), connected(port) as (reader, writer):
        writer.write(get("/slow") + post("/b", b"body")[:-1])
        await until(lambda: waiting and "/b" in heads)
        server.drain()
        waiting[0].respond(200, b"slow")
        assert application.broken == [("/b", None)]
        async with asyncio.timeout(5):
            assert statuses(await reader.read()) == [200]


async def test_close_ends_every_connection() -> None:
    async with listening(EchoApplication()) as (server, port), connected(port) as (reader, _):
        await accepted(server)
        server.close()
        assert await reader.read() == b""


async def test_a_closed_connection_is_freed_without_the_garbage_collector() -> None:
    """Each holds a parser: those of thousands of short connections would wait for a collection."""

    def connections() -> list[object]:
        return [found for found in gc.get_objects() if isinstance(found, ClientConnection)]

    gc.collect()
    assert not connections()
    gc.disable()
    try:
        async with listening(EchoApplication()) as (server, port):
            await send(port, CLOSE)
            async with connected(port) as (reader, writer):
                writer.write(get("/a"))
                await reader.readuntil(b"/a ")
                assert len(connections()) == 1
            await until(lambda: not server.connections)
            await until(lambda: not connections())
    finally:
        gc.enable()
