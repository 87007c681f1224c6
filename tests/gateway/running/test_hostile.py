"""Hostile input and slow clients: a clear response, bounded memory, no harm to other clients."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.store.keys import KeyStore
from tests.conftest import RunningService, chat, exchange, head, resident_mib, serving, wait_until


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A gateway with short timeouts."""
    limits = {
        "header_timeout_s": 1.0,
        "body_timeout_s": 1.0,
        "idle_timeout_s": 1.0,
        "reader_timeout_s": 1.0,
        "max_body_bytes": 100_000,
    }
    with serving(tmp_path_factory.mktemp("guarded"), gateway=limits) as service:
        yield service


BODY = json.dumps(chat("fake: tokens=1")).encode()
GOOD = f"content-length: {len(BODY)}"


@pytest.mark.parametrize(
    "lines",
    [
        [GOOD, "transfer-encoding: chunked"],
        ["content-length: 5", GOOD],
        [GOOD, GOOD],
        ["content-length: +5"],
        ["content-length: 5, 5"],
        ["content-length: -1"],
        ["content-length: 0x10"],
        ["transfer-encoding: chunked", "transfer-encoding: identity"],
        ["transfer-encoding: xchunked"],
        ["transfer-encoding : chunked"],
        [GOOD, "x: a\r\n folded"],
        [GOOD, "x: a\0b"],
        [GOOD, "host: y"],
        [GOOD, "content-type: a", "content-type: b"],
    ],
)
def test_requests_that_two_programs_could_read_differently_are_400(
    guarded: RunningService, lines: list[str]
) -> None:
    before = guarded.stats()["requests"]
    received = exchange(guarded, head(guarded, *lines), BODY)
    assert received.startswith(b"HTTP/1.1 400 "), received[:200]
    assert b"connection: close" in received, "where the next request would begin is not known"
    assert len(re.findall(rb"HTTP/1.1 \d{3} ", received)) == 1
    assert guarded.stats()["requests"] == before


@pytest.mark.parametrize(
    "chunks",
    [
        b"0x5\r\nabcde\r\n0\r\n\r\n",
        b"5;a=\nb\r\nabcde\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\n",
        b"-1\r\n\r\n",
        b"5\nabcde\n",
    ],
)
def test_invalid_chunks_are_400(guarded: RunningService, chunks: bytes) -> None:
    received = exchange(guarded, head(guarded, "transfer-encoding: chunked"), chunks)
    assert received.startswith(b"HTTP/1.1 400 ")


def test_a_trailer_does_not_become_the_next_requests_header(guarded: RunningService) -> None:
    """Lines after a chunked body are not a header: not a key, and no duplicate of the next request's key."""
    first = head(guarded, "transfer-encoding: chunked") + b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    first += f"x: y\r\nauthorization: Bearer {guarded.key}\r\n\r\n".encode()
    last = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    received = exchange(guarded, first + last + b"\r\n", to_the_end=True)
    assert re.findall(rb"HTTP/1.1 (\d{3}) ", received) == [b"200", b"401"]
    own = f"authorization: Bearer {guarded.key}\r\n\r\n".encode()
    received = exchange(guarded, first + last + own, to_the_end=True)
    assert re.findall(rb"HTTP/1.1 (\d{3}) ", received) == [b"200", b"200"]


@pytest.mark.parametrize("endless", [b"0\r\nx: ", b"0\r\n", b"5;x="])
def test_an_endless_trailer_or_chunk_extension_is_431(guarded: RunningService, endless: bytes) -> None:
    before = resident_mib(guarded)
    more = b"name: value\r\n" * 1000 if endless == b"0\r\n" else b"a" * 10_000
    with socket.create_connection(("127.0.0.1", guarded.gateway.port), timeout=8) as connection:
        # The path ignores its body, so it needs no key.
        lines = b"POST /health HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(lines)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(endless)
        for _ in range(8):
            connection.sendall(more)
        assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")
    assert resident_mib(guarded) - before < 10


@pytest.mark.parametrize(
    "raw", [
        b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET /\r\n\r\n", b"hello\r\n\r\n",
        b"GET /health HTTP/1.1\nhost: x\n\n", b"GET /health HTTP/1.1\r\nhost: x\nx: y\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n\n", b"GET /health HTTP/1.1\r\nhost: x\rx: y\r\n\r\n",
    ]
)  # fmt: skip
def test_input_that_is_not_a_request_is_400(guarded: RunningService, raw: bytes) -> None:
    assert exchange(guarded, raw).startswith(b"HTTP/1.1 400 ")


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_gateway_survives_any_bytes(guarded: RunningService, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", guarded.gateway.port), timeout=5) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert guarded.get("/health").status == 200


def test_pipelined_requests_get_their_responses_in_order(guarded: RunningService) -> None:
    bodies = [json.dumps(chat(f"fake: tokens={n} ttft_ms={50 - 20 * n}")).encode() for n in (1, 2)]
    sent = b"".join(head(guarded, f"content-length: {len(body)}") + body for body in bodies)
    sent += b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    received = exchange(guarded, sent, to_the_end=True)
    assert re.findall(rb'"completion_tokens": (\d)', received) == [b"1", b"2"]
    assert received.endswith(b'{"status":"ok"}')
    assert received.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize("more", [[], ["connection: keep-alive"]])
def test_http_1_0_gets_a_stream_without_chunks_that_ends_with_its_connection(
    service: RunningService, more: list[str]
) -> None:
    """The gateway closes the connection at once: the test reads for less than the time of an idle connection."""
    body = json.dumps(chat("fake: tokens=2", stream=True)).encode()
    first = head(service, f"content-length: {len(body)}", *more).replace(b"HTTP/1.1", b"HTTP/1.0")
    received = exchange(service, first + body)
    assert b"transfer-encoding" not in received
    assert b"connection: close" in received
    assert received.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "host", ["a/?x=", "a@b", "a b", "a,b", "http://a", "a:b", "a:1:2", "[::1", "a\\b", "a#b", "\xe9", "a:123456"]
)
def test_an_invalid_host_is_400(guarded: RunningService, host: str) -> None:
    lines = f"GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode("latin1")
    assert exchange(guarded, lines).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("host", ["gw.example.org", "my_gateway:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", ""])
def test_a_valid_host_is_served(guarded: RunningService, host: str) -> None:
    lines = f"GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
    assert exchange(guarded, lines).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("at", [0, 200, 10_000])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_request_for_an_upgrade_gets_a_response_in_http_1_1(
    guarded: RunningService, at: int, framing: str
) -> None:
    """Java's client and curl --http2 send it before a body: the body is read, and the connection continues."""
    body = json.dumps(chat("fake: tokens=2 ttft_ms=50")).encode()
    lines = ["connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__"]
    if framing == "length":
        first = head(guarded, *lines, f"content-length: {len(body)}") + body
    else:
        first = head(guarded, *lines, "transfer-encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    sent = first + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    received = exchange(guarded, sent[:at], sent[at:], to_the_end=True)
    assert re.findall(rb"HTTP/1.1 (\d{3}) ", received) == [b"200", b"200"], received
    assert guarded.last()["body"] == body.decode()
    asked = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    assert exchange(guarded, asked).endswith(b'{"status":"ok"}')


def test_the_gateway_is_not_a_proxy(guarded: RunningService) -> None:
    received = exchange(guarded, b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: 127.0.0.1:22\r\n\r\n", to_the_end=True)
    assert re.findall(rb"HTTP/1.1 (\d{3}) ", received) == [b"405"]
    through = f"GET http://127.0.0.1:{guarded.engine.port}/stats HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    assert exchange(guarded, through).startswith(b"HTTP/1.1 404 ")


def test_a_head_request_gets_no_body(guarded: RunningService) -> None:
    """The client would read bytes after the head as the next response."""
    lines = b"HEAD /nothing HTTP/1.1\r\nhost: x\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    first, second = exchange(guarded, lines, to_the_end=True).split(b"\r\n\r\n", 1)
    assert first.startswith(b"HTTP/1.1 404 ")
    assert second.startswith(b"HTTP/1.1 200 ")


def test_a_slow_head_and_a_slow_body_are_408(guarded: RunningService) -> None:
    assert exchange(guarded, b"POST /v1/chat/completions HTTP/1.1\r\nhos").startswith(b"HTTP/1.1 408 ")
    assert exchange(guarded, head(guarded, GOOD), BODY[:5]).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: (408, "rejected") in {(r["status"], r["outcome"]) for r in guarded.rows()}, "the row", 5)


def test_an_idle_connection_is_closed(guarded: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", guarded.gateway.port), timeout=8) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert connection.recv(65536) == b""


@pytest.mark.parametrize("size", [40_000, 100_000_000])
def test_an_endless_head_is_431_and_costs_no_memory(guarded: RunningService, size: int) -> None:
    before = resident_mib(guarded)
    with socket.create_connection(("127.0.0.1", guarded.gateway.port), timeout=8) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx: ")
        try:
            for _ in range(size // 10_000):
                connection.sendall(b"a" * 10_000)
            assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")
        except (BrokenPipeError, ConnectionResetError):
            assert size > 1_000_000, "a modest head must get its response"
    assert resident_mib(guarded) - before < 10


def test_a_key_of_100_kb_is_refused(guarded: RunningService) -> None:
    received = exchange(
        guarded, f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {'k' * 100_000}\r\n\r\n".encode()
    )
    assert received.startswith(b"HTTP/1.1 431 ")
    short = exchange(
        guarded, f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {'k' * 20_000}\r\n\r\n".encode()
    )
    assert short.startswith(b"HTTP/1.1 401 ")


def test_the_body_of_a_client_without_a_key_is_not_read(guarded: RunningService) -> None:
    lines = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n"
    assert exchange(guarded, lines).startswith(b"HTTP/1.1 401 ")


def test_the_response_to_a_refused_upload_arrives(guarded: RunningService) -> None:
    """The client is still sending when the request is refused: it must receive the reason, not a reset."""
    received = exchange(guarded, head(guarded, "content-length: 50000000"), b"x" * 3_000_000)
    assert received.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 10_000}, "n"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": "10000"}, "n"),
        ({"n": 1e4}, "n"),
        ({"best_of": "1_000"}, "best_of"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "-1"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
    ],
)
def test_numbers_out_of_range_are_400(guarded: RunningService, more: dict[str, object], param: str) -> None:
    before = guarded.stats()["requests"]
    answer = guarded.post("/v1/chat/completions", chat() | more)
    assert (answer.status, answer.json["error"]["param"]) == (400, param), answer.body
    assert guarded.stats()["requests"] == before


def test_more_prompts_than_allowed_sequences_are_400(guarded: RunningService) -> None:
    """Each is a sequence of the engine: a list of thousands would fill the engine despite the queue."""
    before = guarded.stats()["requests"]
    for more in ({"prompt": ["x"] * 17}, {"prompt": [[1, 2]] * 17}, {"prompt": ["x", "y"], "n": 9}):
        answer = guarded.post("/v1/completions", {"model": "fake", **more})
        assert (answer.status, answer.json["error"]["param"]) == (400, "prompt"), answer.body
    assert guarded.stats()["requests"] == before
    for prompt in (["x"] * 16, list(range(1000)), "x"):
        assert guarded.post("/v1/completions", {"model": "fake", "prompt": prompt}).status == 200


@pytest.mark.parametrize(
    ("prompt", "more", "allowed"),
    [
        (["x"] * 16, {}, True),
        (["x"] * 17, {}, False),
        ([["x"]] * 5000, {}, False),
        ([[1, 2]] * 17, {}, False),
        ([1] * 4000, {}, True),
        ("x", {"n": 16}, True),
        (["x"] * 2, {"n": 9}, False),
        (["x"] * 2, {"best_of": 9}, False),
        ([], {}, True),
        (None, {}, True),
    ],
)
def test_each_prompt_of_a_list_counts_as_a_request(
    guarded: RunningService, prompt: object, more: dict[str, object], allowed: bool
) -> None:
    """A thousand sequences in one request would form a queue in the engine that blocks all other requests."""
    before = guarded.stats()["requests"]
    answer = guarded.post("/v1/completions", {"model": "fake", "prompt": prompt, "max_tokens": 1, **more})
    assert guarded.stats()["requests"] == before + allowed
    assert answer.status == (200 if allowed else 400)
    assert allowed or answer.json["error"]["param"] == "prompt"


def test_refused_bodies_cost_no_memory(guarded: RunningService) -> None:
    deep = b'{"model":"fake","messages":[],"x":' + b"[" * 40_000 + b"]" * 40_000 + b"}"
    chunks = b"".join(b"4000\r\n%s\r\n" % (b" " * 0x4000) for _ in range(40))
    for _ in range(5):
        assert guarded.post("/v1/chat/completions", deep).status == 400
    before = resident_mib(guarded)
    for _ in range(40):
        assert guarded.post("/v1/chat/completions", deep).status == 400
        received = exchange(guarded, head(guarded, "transfer-encoding: chunked"), chunks)
        assert received.startswith(b"HTTP/1.1 413 ")
    assert resident_mib(guarded) - before < 10


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"fake","messages":[{"role":"user","content":"\xff\xfe"}]}',
        b'{"model":"fake","messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
        # Python 3.14 reads so many levels, and finds the end of the text.
        b'{"model":"fake","messages":[{"role":"user","content":"x"}],"deep":' + b"[" * 90_000,
        b'{"model":"fake"} {"model":"fake"}',
        b"",
        b"\x00",
    ],
)
def test_a_body_that_is_not_json_is_400(guarded: RunningService, body: bytes) -> None:
    answer = guarded.post("/v1/chat/completions", body)
    assert answer.status == 400, answer.body
    assert answer.json["error"]["type"] == "invalid_request_error"


def test_a_hundred_incomplete_requests_do_not_block_others(guarded: RunningService) -> None:
    clients = [socket.create_connection(("127.0.0.1", guarded.gateway.port), timeout=5) for _ in range(100)]
    try:
        for client in clients:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        assert guarded.post("/v1/chat/completions", chat("fake: tokens=1")).status == 200
    finally:
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()


@pytest.mark.parametrize("stream", [True, False])
async def test_an_idempotency_key_runs_once(guarded: RunningService, stream: bool) -> None:
    """The first client disconnects in the middle; a retry gets the whole response of the one generation."""
    before = guarded.stats()
    body = json.dumps(chat(f"fake: tokens=20 itl_ms=20 ttft_ms={50 if stream else 400}", stream=stream)).encode()
    sent = head(guarded, f"content-length: {len(body)}", f"idempotency-key: once-{stream}") + body
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.gateway.port)
    writer.write(sent)
    await writer.drain()
    await asyncio.to_thread(wait_until, lambda: guarded.stats()["active"] == before["active"] + 1, "it runs", 5)
    if stream:
        await reader.readuntil(b"quick")
    writer.transport.abort()
    received = await asyncio.to_thread(exchange, guarded, sent.replace(b"host: x", b"host: x\r\nconnection: close"))
    assert received.count(b"[DONE]" if stream else b'"completion_tokens": 20') == 1
    again = await asyncio.to_thread(exchange, guarded, sent.replace(b"host: x", b"host: x\r\nconnection: close"))
    assert (
        re.search(rb"x-request-id: (\w+)", received) == re.search(rb"x-request-id: (\w+)", again)
        or again == received
    )
    after = guarded.stats()
    assert after["requests"] == before["requests"] + 1
    assert after["aborted"] == before["aborted"]
    other = json.dumps(chat("another")).encode()
    refused = exchange(
        guarded, head(guarded, f"content-length: {len(other)}", f"idempotency-key: once-{stream}") + other
    )
    assert refused.startswith(b"HTTP/1.1 422 ")
    assert b"idempotency_key_reused" in refused


def test_a_response_is_not_repeated_to_another_key_of_the_same_user(guarded: RunningService) -> None:
    """The other key may lack access to the model."""
    store = KeyStore(guarded.data)
    other = store.create("ada", models=["nothing-else"])
    store.close()
    wait_until(lambda: guarded.get("/v1/models", key=other).status == 200, "it is known", 5)
    sent = head(guarded, GOOD, "idempotency-key: mine") + BODY
    assert exchange(guarded, sent).startswith(b"HTTP/1.1 200 ")
    assert exchange(guarded, sent.replace(guarded.key.encode(), other.encode())).startswith(b"HTTP/1.1 403 ")


def test_a_failed_request_may_be_retried_with_the_same_key(guarded: RunningService) -> None:
    body = json.dumps(chat("fake: fault=status:500")).encode()
    sent = head(guarded, f"content-length: {len(body)}", "idempotency-key: again") + body
    before = guarded.stats()
    assert exchange(guarded, sent).startswith(b"HTTP/1.1 500 ")
    assert exchange(guarded, sent).startswith(b"HTTP/1.1 500 ")
    after = guarded.stats()
    assert after["requests"] - after["canaries"] == before["requests"] - before["canaries"] + 2
    assert exchange(guarded, head(guarded, GOOD, f"idempotency-key: {'x' * 300}") + BODY).startswith(
        b"HTTP/1.1 400 "
    )


@pytest.mark.parametrize(
    ("line", "key", "status"),
    [
        ("GET /v1/models", "", b"401"),
        ("GET /v1/models", "good", b"200"),
        ("GET /health", "", b"200"),
        ("OPTIONS /v1/models", "", b"204"),
        ("GET /nothing", "", b"404"),
    ],
)
def test_thousands_of_pipelined_upgrades_each_get_a_response(
    guarded: RunningService, line: str, key: str, status: bytes
) -> None:
    """They arrive in one piece; the gateway's log, checked at its end, has no traceback."""
    many = 3000
    credential = f"authorization: Bearer {guarded.key}\r\n" if key else ""
    one = f"{line} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n{credential}\r\n".encode()
    last = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    seen = b""
    with socket.create_connection(("127.0.0.1", guarded.gateway.port), timeout=60) as connection:
        sender = threading.Thread(target=connection.sendall, args=(one * many + last,))
        sender.start()
        while piece := connection.recv(1 << 16):
            seen += piece
        sender.join()
    assert seen.count(b"HTTP/1.1 " + status + b" ") == many + (status == b"200" and "health" not in line) + (
        "health" in line
    )
    assert seen.endswith(b'{"status":"ok"}')


def test_pipelined_upgrades_keep_their_bodies(guarded: RunningService) -> None:
    body = json.dumps(chat("fake: tokens=1")).encode()
    lines = ("connection: upgrade", "upgrade: h2c", f"content-length: {len(body)}")
    one = head(guarded, *lines) + body
    last = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = exchange(guarded, one * 20 + last, to_the_end=True, timeout=30)
    assert answer.count(b'"object": "chat.completion"') == 20
    assert answer.endswith(b'{"status":"ok"}')


def test_equal_content_types_count_as_one_and_different_ones_are_refused(guarded: RunningService) -> None:
    twice = head(guarded, GOOD, "content-type: application/json", "content-type: application/json") + BODY
    assert exchange(guarded, twice).startswith(b"HTTP/1.1 200 ")
    differs = head(guarded, GOOD, "content-type: application/json", "content-type: text/plain") + BODY
    assert exchange(guarded, differs).startswith(b"HTTP/1.1 400 ")
