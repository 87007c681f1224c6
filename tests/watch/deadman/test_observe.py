"""Looks at the host at home: each result is named, and each look ends in time."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.watch.deadman.observe import HandshakeReader, parse_handshakes, parse_ready, read_ready
from appliance.watch.deadman.policy import ReadyState
from tests.conftest import serving, wait_until
from tests.ports import free_port

PEER = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="
LONG = 60.0
"""Limit that a busy machine does not reach; without a bound, the looks of these tests never end."""


def response(status: int, body: object) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status} x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


@pytest.mark.parametrize(
    ("data", "state"),
    [
        (response(200, {"status": "ready", "engines": {"chat": "ready"}}), ReadyState.SERVING),
        (response(503, {"status": "draining", "engines": {}}), ReadyState.DRAINED),
        (response(503, {"status": "paused: on battery", "engines": {}}), ReadyState.DRAINED),
        (response(503, {"status": "no", "engines": {"a": "draining: x", "b": "not loaded"}}), ReadyState.DRAINED),
        (response(503, {"status": "not ready", "engines": {"b": "not loaded"}}), ReadyState.NOT_READY),
        (response(503, {"status": "not ready", "paused": "on battery", "engines": {}}), ReadyState.DRAINED),
        (response(503, {"status": "not ready", "engines": {"chat": "draining: hot"}}), ReadyState.DRAINED),
        (response(503, {"status": "no", "engines": {"a": "draining: hot", "b": "HTTP 500"}}), ReadyState.NOT_READY),
        (response(503, {"status": "not ready", "engines": {"chat": "Connection refused"}}), ReadyState.NOT_READY),
        (response(503, {"status": "not ready", "engines": []}), ReadyState.NOT_READY),
        (response(503, {"error": {"message": "the edge"}}), ReadyState.FAILING),
        (response(503, b"<html>"), ReadyState.FAILING),
        (response(200, b"<html>router login</html>"), ReadyState.FAILING),
        (response(500, {"status": "ready"}), ReadyState.FAILING),
        (response(404, b""), ReadyState.FAILING),
        (b"SSH-2.0-OpenSSH_9.9\r\n", ReadyState.FAILING),
        (b"", ReadyState.FAILING),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", ReadyState.FAILING),
    ],
)  # fmt: skip
def test_a_response_is_read(data: bytes, state: ReadyState) -> None:
    assert parse_ready(data)[0] is state


@contextlib.contextmanager
def listener(respond: bytes | None, pause_s: float) -> Iterator[int]:
    """Accept connections and send ``respond`` a byte at a time, with pauses, until the client closes."""
    server = socket.create_server(("127.0.0.1", free_port()))
    ended = threading.Event()

    def run() -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                connection, _ = server.accept()
                with connection:
                    while not ended.is_set() and respond is not None:
                        connection.send(respond)
                        ended.wait(pause_s)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            socket.create_connection(server.getsockname(), timeout=1).close()
        thread.join()
        server.close()


def test_a_gateway_that_sends_a_byte_now_and_then_ends_a_look_in_time() -> None:
    with listener(b"x", 0.02) as port:
        began = time.monotonic()
        state, detail = read_ready("127.0.0.1", port, timeout_s=0.5)
        assert time.monotonic() - began < LONG
    assert (state, detail) == (ReadyState.FAILING, "connected, no response within 0 s")


def test_a_gateway_that_accepts_and_hangs_is_named() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as hanging:
        state, detail = read_ready("127.0.0.1", hanging.getsockname()[1], timeout_s=1.0)
    assert (state, detail) == (ReadyState.FAILING, "connected, no response within 1 s")


def test_a_machine_that_refuses_is_alive() -> None:
    assert read_ready("127.0.0.1", free_port(), timeout_s=5) == (ReadyState.FAILING, "connection refused")


def test_a_machine_that_drops_packets_is_unreachable() -> None:
    """The kernel drops a SYN for a listener whose queue is full, as a cut line does."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", free_port()), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        state, detail = read_ready("127.0.0.1", full.getsockname()[1], timeout_s=0.3)
    assert (state, detail) == (ReadyState.UNREACHABLE, "no connection within 0 s")


def test_the_real_gateway_serves_and_loses_its_engine(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        port = service.gateway.port

        def state() -> ReadyState:
            return read_ready("127.0.0.1", port, timeout_s=30)[0]

        wait_until(lambda: state() is ReadyState.SERVING, "the gateway serves", 30)
        service.engine.stop()
        wait_until(lambda: state() is ReadyState.NOT_READY, "the gateway reports the missing engine", 30)


@pytest.fixture
def wg(tmp_path: Path) -> Path:
    """A program like wg, which prints the file ``handshakes``."""
    program = tmp_path / "wg"
    show = f'[ "$*" = "show wg0 latest-handshakes" ] && exec cat {tmp_path}/handshakes'
    program.write_text(f"#!/bin/sh\n{show}\nexit 2\n")
    program.chmod(0o755)
    return program


def handshake(wg: Path, when: float) -> None:
    wg.with_name("handshakes").write_text(f"other\t{int(time.time())}\n{PEER}\t{int(when)}\n")


def test_a_handshake_has_its_age(wg: Path) -> None:
    handshake(wg, time.time() - 100)
    age = HandshakeReader("wg0", PEER, program=str(wg)).age_s()
    assert age is not None
    assert 100 <= age < 100 + LONG


def test_a_handshake_that_never_was_has_no_age(wg: Path) -> None:
    reader = HandshakeReader("wg0", PEER, program=str(wg))
    handshake(wg, 0)
    assert reader.age_s() is None
    handshake(wg, time.time())
    age = reader.age_s()
    assert age is not None
    assert age < LONG


def test_a_clock_that_was_set_makes_no_handshake_older(wg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = HandshakeReader("wg0", PEER, program=str(wg))
    handshake(wg, time.time() - 10)
    assert (reader.age_s() or LONG) < 10 + LONG
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400)
    assert (reader.age_s() or LONG) < 10 + LONG, "the same handshake"
    handshake(wg, real())
    assert (reader.age_s() or LONG) < LONG, "a new handshake, whose time is a day old by the wall clock"


def test_a_program_that_fails_gives_no_age_and_one_line(wg: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = HandshakeReader("wg0", PEER, program=str(wg))
    for _ in range(3):
        assert reader.age_s() is None
    handshake(wg, time.time())
    assert reader.age_s() is not None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No such file" in caplog.text
    assert HandshakeReader("wg0", PEER, program=str(wg.with_name("absent"))).age_s() is None


def test_a_program_that_hangs_delays_a_look_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = tmp_path / "wg"
    program.write_text("#!/bin/sh\ntrap '' TERM\nexec sleep 1000\n")
    program.chmod(0o755)
    reader = HandshakeReader("wg0", PEER, program=str(program), timeout_s=0.2)
    began = time.monotonic()
    assert reader.age_s() is None
    assert time.monotonic() - began < LONG
    assert "did not end within" in caplog.text


@pytest.mark.parametrize("text", ["", "other\t5\n", f"{PEER}\tnever\n"])
def test_an_output_without_the_peer_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"has no peer|invalid literal"):
        parse_handshakes(text, PEER)
