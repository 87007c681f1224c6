"""Clients that read slowly or not at all: cut in time, cheap until then, and never cut while they read."""

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
    """A gateway with little patience for who does not read."""
    limits = {"idle_timeout_s": 1.0, "reader_timeout_s": 1.0}
    with serving(tmp_path_factory.mktemp("readers"), gateway=limits) as service:
        yield service


def test_a_client_that_reads_nothing_is_cut_and_costs_little(guarded: RunningService) -> None:
    before, rows = resident_mib(guarded), len(guarded.rows())
    body = json.dumps(chat("fake: tokens=1000000 itl_ms=0 ttft_ms=1", stream=True)).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", guarded.gateway.port))
        connection.sendall(head(guarded, f"content-length: {len(body)}") + body)
        wait_until(lambda: "aborted" in {row["outcome"] for row in guarded.rows()[rows:]}, "it is cut", 8)
        assert resident_mib(guarded) - before < 20
        wait_until(lambda: guarded.stats()["active"] == 0, "the engine stops", 3)


def reads_little(service: RunningService, sent: bytes, times: int = 1) -> socket.socket:
    """A connection with the smallest of buffers that has sent ``sent`` as far as the gateway takes it."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", service.gateway.port))
    with contextlib.suppress(TimeoutError, ConnectionError):
        for _ in range(times):
            connection.sendall(sent)
            time.sleep(0.001)
    return connection


def test_a_stopping_gateway_waits_for_who_reads_slowly(tmp_path: Path) -> None:
    """The engine has said everything and the drain is over; what the client has not taken yet still arrives."""
    with serving(tmp_path / "last", gateway={"drain_timeout_s": 30}) as service:
        body = json.dumps(chat("fake: tokens=1000000 ttft_ms=500")).encode()
        with reads_little(service, head(service, f"content-length: {len(body)}") + body) as connection:
            wait_until(lambda: service.stats()["active"] == 1, "it runs", 5)
            service.gateway.process.send_signal(signal.SIGTERM)
            wait_until(lambda: service.stats()["active"] == 0, "the engine is done", 10)
            assert whole_answer(connection) > 4_000_000
        assert service.gateway.process.wait(10) == 0


def whole_answer(connection: socket.socket, pause_s: float = 0.0, pauses: int = 0) -> int:
    """Read to the end, the first pieces with pauses between them: the bytes of a body as long as it says."""
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
    """Connections of clients that the gateway has, by the kernel's own table."""
    port = f"{service.gateway.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(words[1].endswith(f":{port}") and words[3] == "01" for words in lines)


def test_who_asks_and_asks_and_never_reads_is_cut_and_costs_little(guarded: RunningService) -> None:
    """Requests one behind the other, each with an answer eight times as long, none of it read; no key is needed."""
    before = resident_mib(guarded)
    with reads_little(guarded, b"GET / HTTP/1.1\r\nhost: xxxxxx\r\n\r\n" * 200, 1500) as connection:
        assert resident_mib(guarded) - before < 20
        assert guarded.get("/health").status == 200, "others are served meanwhile"
        wait_until(lambda: open_connections(guarded) == 0, "it is cut", 8)
        assert connection.fileno() > 0


def test_a_reader_of_a_few_bytes_a_second_is_cut(guarded: RunningService) -> None:
    before, rows = resident_mib(guarded), len(guarded.rows())
    body = json.dumps(chat("fake: tokens=1000000 itl_ms=0 ttft_ms=1", stream=True)).encode()
    with reads_little(guarded, head(guarded, f"content-length: {len(body)}") + body) as connection:
        connection.settimeout(0.2)

        def is_cut() -> bool:
            connection.recv(1)
            return "aborted" in {row["outcome"] for row in guarded.rows()[rows:]}

        wait_until(is_cut, "it is cut", 8)
    assert resident_mib(guarded) - before < 20


@pytest.mark.parametrize("more", [[], ["connection: close"]])
def test_a_whole_answer_that_nobody_reads_is_not_kept(guarded: RunningService, more: list[str]) -> None:
    """Megabytes that the engine sent in one piece: given up after the reader's time, also between two requests."""
    body = json.dumps(chat("fake: tokens=1000000 ttft_ms=1")).encode()
    with reads_little(guarded, head(guarded, f"content-length: {len(body)}", *more) + body):
        wait_until(lambda: open_connections(guarded) == 1, "it is there", 5)
        wait_until(lambda: open_connections(guarded) == 0, "it is cut", 15)


def test_a_whole_answer_read_slowly_but_steadily_arrives(guarded: RunningService) -> None:
    """Longer than the reader's time in all, never within it without progress; the connection closes after it."""
    body = json.dumps(chat("fake: tokens=1000000 ttft_ms=1")).encode()
    sent = head(guarded, f"content-length: {len(body)}", "connection: close") + body
    with reads_little(guarded, sent) as connection:
        assert whole_answer(connection, 0.01, 300) > 4_000_000
