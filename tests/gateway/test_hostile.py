"""Input no honest client sends, clients that do not keep up: a clear answer, bounded memory, no harm to others."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.store.keys import KeyStore
from tests.conftest import Service, chat, exchange, serving, wait_until


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A gateway with short patience."""
    limits = {
        "header_timeout_s": 1.0,
        "body_timeout_s": 1.0,
        "idle_timeout_s": 1.0,
        "reader_timeout_s": 1.0,
        "max_body_bytes": 100_000,
        "media_domains": ["images.example.org"],
    }
    with serving(tmp_path_factory.mktemp("guarded"), gateway=limits) as service:
        yield service


def head(service: Service, *lines: str, path: str = "/v1/chat/completions") -> bytes:
    first = [f"POST {path} HTTP/1.1", "host: x", f"authorization: Bearer {service.key}", *lines]
    return "\r\n".join([*first, "", ""]).encode("latin1")


def resident_mib(service: Service) -> int:
    text = Path(f"/proc/{service.gateway.process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) // 1024


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
def test_requests_that_two_programs_could_read_differently_are_400(guarded: Service, lines: list[str]) -> None:
    before = guarded.stats()["requests"]
    said = exchange(guarded, head(guarded, *lines), BODY)
    assert said.startswith(b"HTTP/1.1 400 "), said[:200]
    assert b"connection: close" in said, "where the next request would begin is not known"
    assert len(re.findall(rb"HTTP/1.1 \d{3} ", said)) == 1
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
def test_broken_chunks_are_400(guarded: Service, chunks: bytes) -> None:
    said = exchange(guarded, head(guarded, "transfer-encoding: chunked"), chunks)
    assert said.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "raw", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET /\r\n\r\n", b"hello\r\n\r\n"]
)
def test_what_is_no_request_is_400(guarded: Service, raw: bytes) -> None:
    assert exchange(guarded, raw).startswith(b"HTTP/1.1 400 ")


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_leave_the_gateway_standing(guarded: Service, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", guarded.gateway.port), timeout=5) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert guarded.get("/health").status == 200


def test_pipelined_requests_are_answered_in_order(guarded: Service) -> None:
    bodies = [json.dumps(chat(f"fake: tokens={n} ttft_ms={50 - 20 * n}")).encode() for n in (1, 2)]
    sent = b"".join(head(guarded, f"content-length: {len(body)}") + body for body in bodies)
    sent += b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    said = exchange(guarded, sent, to_the_end=True)
    assert re.findall(rb'"completion_tokens": (\d)', said) == [b"1", b"2"]
    assert said.endswith(b'{"status":"ok"}')
    assert said.count(b"HTTP/1.1 200 OK") == 3


def test_http_1_0_gets_a_stream_without_chunks(guarded: Service) -> None:
    body = json.dumps(chat("fake: tokens=2", stream=True)).encode()
    first = head(guarded, f"content-length: {len(body)}").replace(b"HTTP/1.1", b"HTTP/1.0")
    said = exchange(guarded, first + body)
    assert b"transfer-encoding" not in said
    assert said.endswith(b"data: [DONE]\n\n")


def test_a_slow_head_and_a_slow_body_are_408(guarded: Service) -> None:
    assert exchange(guarded, b"POST /v1/chat/completions HTTP/1.1\r\nhos").startswith(b"HTTP/1.1 408 ")
    assert exchange(guarded, head(guarded, GOOD), BODY[:5]).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: (408, "rejected") in {(r["status"], r["outcome"]) for r in guarded.rows()}, "the row", 5)


def test_an_idle_connection_is_closed(guarded: Service) -> None:
    with socket.create_connection(("127.0.0.1", guarded.gateway.port), timeout=8) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert connection.recv(65536) == b""


@pytest.mark.parametrize("size", [40_000, 100_000_000])
def test_a_head_without_end_is_431_and_costs_no_memory(guarded: Service, size: int) -> None:
    before = resident_mib(guarded)
    with socket.create_connection(("127.0.0.1", guarded.gateway.port), timeout=8) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx: ")
        try:
            for _ in range(size // 10_000):
                connection.sendall(b"a" * 10_000)
            assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")
        except (BrokenPipeError, ConnectionResetError):
            assert size > 1_000_000, "a modest head must get its answer"
    assert resident_mib(guarded) - before < 10


def test_a_key_of_100_kb_is_refused(guarded: Service) -> None:
    said = exchange(
        guarded, f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {'k' * 100_000}\r\n\r\n".encode()
    )
    assert said.startswith(b"HTTP/1.1 431 ")
    short = exchange(
        guarded, f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {'k' * 20_000}\r\n\r\n".encode()
    )
    assert short.startswith(b"HTTP/1.1 401 ")


def test_who_has_no_key_cannot_make_us_read_a_body(guarded: Service) -> None:
    lines = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n"
    assert exchange(guarded, lines).startswith(b"HTTP/1.1 401 ")


def test_an_answer_to_a_refused_upload_arrives(guarded: Service) -> None:
    """The client is still sending when it is refused: it must read the reason, not a reset."""
    said = exchange(guarded, head(guarded, "content-length: 50000000"), b"x" * 3_000_000)
    assert said.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 10_000}, "n"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": 2.5}, "n"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "emperor", "content": "x"}]}, "messages"),
        ({"messages": [7]}, "messages[0]"),
    ],
)
def test_figures_out_of_range_are_400(guarded: Service, more: dict[str, object], param: str) -> None:
    before = guarded.stats()["requests"]
    answer = guarded.post("/v1/chat/completions", chat() | more)
    assert (answer.status, answer.json["error"]["param"]) == (400, param), answer.body
    assert guarded.stats()["requests"] == before


def test_more_prompts_than_answers_allowed_are_400(guarded: Service) -> None:
    """Each is a sequence of the engine: a list of thousands would fill it past any queue of ours."""
    before = guarded.stats()["requests"]
    for more in ({"prompt": ["x"] * 17}, {"prompt": [[1, 2]] * 17}, {"prompt": ["x", "y"], "n": 9}):
        answer = guarded.post("/v1/completions", {"model": "fake", **more})
        assert (answer.status, answer.json["error"]["param"]) == (400, "prompt"), answer.body
    assert guarded.stats()["requests"] == before
    for prompt in (["x"] * 16, list(range(1000)), "x"):
        assert guarded.post("/v1/completions", {"model": "fake", "prompt": prompt}).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"fake","temperature":NaN,"messages":[{"role":"user","content":"x"}]}',
        b'{"model":"fake","top_p":Infinity,"messages":[{"role":"user","content":"x"}]}',
        b'{"model":"fake","messages":[{"role":"user","content":"\xff\xfe"}]}',
        b'{"model":"fake","messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
        b'{"model":"fake","messages":[{"role":"user","content":"x"}],"deep":'
        + b"[" * 20_000
        + b"]" * 20_000
        + b"}",
        b'{"model":"fake"} {"model":"fake"}',
        b"",
        b"\x00",
    ],
)
def test_what_is_no_json_is_400(guarded: Service, body: bytes) -> None:
    answer = guarded.post("/v1/chat/completions", body)
    assert answer.status == 400, answer.body
    assert answer.json["error"]["type"] == "invalid_request_error"


def image(url: object, **more: object) -> dict[str, object]:
    return chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}, **more}]}])


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data", "http://127.0.0.1:8101/pause", "http://[::1]/", "http://10.77.0.2/",
        "file:///etc/passwd", "http://images.example.org@127.0.0.1/", "http://images.example.org\\@127.0.0.1/",
        "http://images.example.org.evil.net/", "http://2130706433/", "//127.0.0.1/x", "HTTP://LOCALHOST/", "gopher://x/",
        "http://images.example.org:80@10.0.0.1/", " http://127.0.0.1/", "http://127.0.0.1\\@images.example.org/",
        "http://user@images.example.org/", "ftp://images.example.org/x", "http://images.example.org/\r\nx",
    ],
)  # fmt: skip
def test_no_engine_is_made_to_fetch_what_it_must_not(guarded: Service, url: str) -> None:
    before = guarded.stats()["requests"]
    hidden = json.dumps(image(url)).replace("image_url", "image\\u005furl").replace('"url"', '"\\u0075rl"').encode()
    for body in (
        image(url),
        hidden,
        {"model": "fake", "input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
    ):
        path = "/v1/responses" if isinstance(body, dict) and "input" in body else "/v1/chat/completions"
        answer = guarded.post(path, body)
        assert (answer.status, answer.json["error"]["code"]) == (400, "media_not_allowed"), body
    assert guarded.stats()["requests"] == before


@pytest.mark.parametrize(
    "url", ["data:image/png;base64,AAAA", "https://images.example.org/a.png?b=c#d", "DATA:image/png,x"]
)
def test_media_that_may_be_fetched_pass(guarded: Service, url: str) -> None:
    assert guarded.post("/v1/chat/completions", image(url)).status == 200


def test_a_url_in_text_or_in_a_tool_is_no_media(guarded: Service) -> None:
    tool = {
        "type": "function",
        "function": {"name": "get", "parameters": {"properties": {"url": {"type": "string"}}}},
    }
    body = chat('look at "url": http://127.0.0.1/', tools=[tool])
    assert guarded.post("/v1/chat/completions", body).status == 200


def test_a_client_that_reads_nothing_is_cut_and_costs_little(guarded: Service) -> None:
    before, rows = resident_mib(guarded), len(guarded.rows())
    body = json.dumps(chat("fake: tokens=1000000 itl_ms=0 ttft_ms=1", stream=True)).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", guarded.gateway.port))
        connection.sendall(head(guarded, f"content-length: {len(body)}") + body)
        wait_until(lambda: "aborted" in {row["outcome"] for row in guarded.rows()[rows:]}, "it is cut", 8)
        assert resident_mib(guarded) - before < 20
        wait_until(lambda: guarded.stats()["active"] == 0, "the engine stops", 3)


def test_a_hundred_half_open_clients_do_not_keep_others_out(guarded: Service) -> None:
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
async def test_an_idempotency_key_runs_once(guarded: Service, stream: bool) -> None:
    """The first client leaves in the middle; who asks again gets the whole answer of the one generation."""
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
    said = await asyncio.to_thread(exchange, guarded, sent.replace(b"host: x", b"host: x\r\nconnection: close"))
    assert said.count(b"[DONE]" if stream else b'"completion_tokens": 20') == 1
    again = await asyncio.to_thread(exchange, guarded, sent.replace(b"host: x", b"host: x\r\nconnection: close"))
    assert re.search(rb"x-request-id: (\w+)", said) == re.search(rb"x-request-id: (\w+)", again) or again == said
    after = guarded.stats()
    assert after["requests"] == before["requests"] + 1
    assert after["aborted"] == before["aborted"]
    other = json.dumps(chat("another")).encode()
    refused = exchange(
        guarded, head(guarded, f"content-length: {len(other)}", f"idempotency-key: once-{stream}") + other
    )
    assert refused.startswith(b"HTTP/1.1 422 ")
    assert b"idempotency_key_reused" in refused


def test_an_answer_is_not_repeated_to_another_key_of_the_same_user(guarded: Service) -> None:
    """It may not be allowed the model that the first one asked."""
    store = KeyStore(guarded.data)
    other = store.create("ada", models=["nothing-else"])
    store.close()
    wait_until(lambda: guarded.get("/v1/models", key=other).status == 200, "it is known", 5)
    sent = head(guarded, GOOD, "idempotency-key: mine") + BODY
    assert exchange(guarded, sent).startswith(b"HTTP/1.1 200 ")
    assert exchange(guarded, sent.replace(guarded.key.encode(), other.encode())).startswith(b"HTTP/1.1 403 ")


def test_a_failed_answer_may_be_tried_again_with_the_same_key(guarded: Service) -> None:
    body = json.dumps(chat("fake: fault=status:500")).encode()
    sent = head(guarded, f"content-length: {len(body)}", "idempotency-key: again") + body
    before = guarded.stats()["requests"]
    assert exchange(guarded, sent).startswith(b"HTTP/1.1 500 ")
    assert exchange(guarded, sent).startswith(b"HTTP/1.1 500 ")
    assert guarded.stats()["requests"] == before + 2
    assert exchange(guarded, head(guarded, GOOD, f"idempotency-key: {'x' * 300}") + BODY).startswith(
        b"HTTP/1.1 400 "
    )
