"""Slow readers: disconnected in time, cheap until then, and never disconnected while they make progress."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RunningService, chat, head, resident_mib, serving, wait_until


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A gateway with short timeouts for slow readers."""
    limits = {"idle_timeout_s": 1.0, "reader_timeout_s": 1.0}
    with serving(tmp_path_factory.mktemp("readers"), gateway=limits) as service:
        yield service


def test_a_client_that_does_not_read_is_disconnected_and_costs_little(guarded: RunningService) -> None:
    before, rows = resident_mib(guarded), len(guarded.rows())
    body = json.dumps(chat("fake: tokens=1000000 itl_ms=0 ttft_ms=1", stream=True)).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", guarded.gateway.port))
        connection.sendall(head(guarded, f"content-length: {len(body)}") + body)
        wait_until(
            lambda: "aborted" in {row["outcome"] for row in guarded.rows()[rows:]}, "the gateway disconnects", 8
        )
        assert resident_mib(guarded) - before < 20
        wait_until(lambda: guarded.stats()["active"] == 0, "the engine stops", 3)


def reads_little(service: RunningService, sent: bytes, times: int = 1) -> socket.socket:
    """Return a connection with the smallest buffer that has sent ``sent`` as far as the gateway reads it."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", service.gateway.port))
    with contextlib.suppress(TimeoutError, ConnectionError):
        for _ in range(times):
            connection.sendall(sent)
            time.sleep(0.001)
    return connection


def test_a_draining_gateway_waits_for_a_slow_reader(tmp_path: Path) -> None:
    """The engine is finished and the drain is over; the client still receives the rest of its response."""
    with serving(tmp_path / "last", gateway={"drain_timeout_s": 30}) as service:
        body = json.dumps(chat("fake: tokens=1000000 ttft_ms=500")).encode()
        with reads_little(service, head(service, f"content-length: {len(body)}") + body) as connection:
            wait_until(lambda: service.stats()["active"] == 1, "the request runs", 5)
            service.gateway.process.send_signal(signal.SIGTERM)
            wait_until(lambda: service.stats()["active"] == 0, "the engine is finished", 10)
            assert read_body(connection) > 4_000_000
        assert service.gateway.process.wait(10) == 0


def read_body(connection: socket.socket, pause_s: float = 0.0, pauses: int = 0) -> int:
    """Read to the end, with ``pauses`` pauses between the first pieces; return the length of the body in bytes."""
    connection.settimeout(10)
    seen = bytearray()
    while piece := connection.recv(65536):
        seen += piece
        if pauses:
            pauses -= 1
            time.sleep(pause_s)
    length = re.search(rb"content-length: (\d+)", seen)
    assert length
    assert len(seen.partition(b"\r\n\r\n")[2]) == int(length[1])
    return int(length[1])


def open_connections(service: RunningService) -> int:
    """Return the number of client connections of the gateway, by the kernel's table."""
    port = f"{service.gateway.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(words[1].endswith(f":{port}") and words[3] == "01" for words in lines)


def test_pipelined_requests_without_reading_are_disconnected_and_cost_little(guarded: RunningService) -> None:
    """Each request has a response eight times as long, and none is read; no key is needed."""
    before = resident_mib(guarded)
    with reads_little(guarded, b"GET / HTTP/1.1\r\nhost: xxxxxx\r\n\r\n" * 200, 1500) as connection:
        assert resident_mib(guarded) - before < 20
        assert guarded.get("/health").status == 200, "other clients are served in the meantime"
        wait_until(lambda: open_connections(guarded) == 0, "the gateway disconnects", 8)
        assert connection.fileno() > 0


def test_a_reader_of_a_few_bytes_a_second_is_disconnected(guarded: RunningService) -> None:
    before, rows = resident_mib(guarded), len(guarded.rows())
    body = json.dumps(chat("fake: tokens=1000000 itl_ms=0 ttft_ms=1", stream=True)).encode()
    with reads_little(guarded, head(guarded, f"content-length: {len(body)}") + body) as connection:
        connection.settimeout(0.2)

        def is_disconnected() -> bool:
            connection.recv(1)
            return "aborted" in {row["outcome"] for row in guarded.rows()[rows:]}

        wait_until(is_disconnected, "the gateway disconnects", 8)
    assert resident_mib(guarded) - before < 20


@pytest.mark.parametrize("more", [[], ["connection: close"]])
def test_a_response_that_is_not_read_is_dropped(guarded: RunningService, more: list[str]) -> None:
    """Megabytes without streaming are dropped after the reader's timeout, also between two requests."""
    body = json.dumps(chat("fake: tokens=1000000 ttft_ms=1")).encode()
    with reads_little(guarded, head(guarded, f"content-length: {len(body)}", *more) + body):
        wait_until(lambda: open_connections(guarded) == 1, "the connection is open", 5)
        wait_until(lambda: open_connections(guarded) == 0, "the gateway disconnects", 15)


def test_a_response_that_is_read_slowly_but_steadily_is_complete(guarded: RunningService) -> None:
    """Reading takes longer than the reader's timeout, with progress all the time; then the connection closes."""
    body = json.dumps(chat("fake: tokens=1000000 ttft_ms=1")).encode()
    sent = head(guarded, f"content-length: {len(body)}", "connection: close") + body
    with reads_little(guarded, sent) as connection:
        assert read_body(connection, 0.01, 300) > 4_000_000
