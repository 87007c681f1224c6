"""Looks at the host at home from the VPS: /ready through the tunnel, and the last handshake of WireGuard.

Each look is bounded in time, whatever the network or a program does: a switch that waits is dead itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import socket
import time
from http.client import HTTPException, HTTPResponse
from typing import Any, cast

from appliance.system.bounded_child import KILL_AFTER_S, BoundedChild
from appliance.watch.deadman.policy import ReadyState

LOG = logging.getLogger(__name__)

BODY_LIMIT = 65_536
UP = ("ready", "not loaded")
"""States of engines that work; an engine on demand is mostly not loaded."""
STOPPED = ("draining", "drained", "paused")
"""First words of a state that the operator or the power agent chose."""


def read_ready(address: str, port: int, *, timeout_s: float) -> tuple[ReadyState, str]:
    """Return the state of the gateway at ``address``, and the result in a few words.

    It takes ``timeout_s`` at most, also if the gateway sends a byte now and then.
    """
    deadline = time.monotonic() + timeout_s
    try:
        with socket.create_connection((address, port), timeout=timeout_s) as connection:
            try:
                data = _exchange(connection, f"{address}:{port}", deadline)
            except TimeoutError:
                return ReadyState.FAILING, f"connected, no response within {timeout_s:.0f} s"
            except OSError as error:
                return ReadyState.FAILING, _reason(error)
    except ConnectionRefusedError as error:
        # The machine itself refused: nothing listens on the port.
        return ReadyState.FAILING, _reason(error)
    except TimeoutError:
        return ReadyState.UNREACHABLE, f"no connection within {timeout_s:.0f} s"
    except OSError as error:
        return ReadyState.UNREACHABLE, _reason(error)
    return parse_ready(data)


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _exchange(connection: socket.socket, host: str, deadline: float) -> bytes:
    connection.sendall(f"GET /ready HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    data = b""
    while len(data) < BODY_LIMIT:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(16_384)
        if not piece:
            break
        data += piece
    return data


class _ReceivedBytes:
    """Received bytes for :class:`HTTPResponse`, in place of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def parse_ready(data: bytes) -> tuple[ReadyState, str]:
    """Return the state that the response ``data`` to GET /ready reports, and its result in a few words."""
    try:
        response = HTTPResponse(cast("socket.socket", _ReceivedBytes(data)))
        response.begin()
        body = response.read()
    except (HTTPException, OSError, ValueError):
        return ReadyState.FAILING, "the response is not HTTP"
    table: Any = None
    with contextlib.suppress(ValueError):
        table = json.loads(body)
    if not isinstance(table, dict) or "status" not in table or response.status not in (200, 503):
        return ReadyState.FAILING, f"HTTP {response.status}, not a response of the gateway"
    if response.status == 200:
        return ReadyState.SERVING, "ready"
    engines = table.get("engines")
    states = [str(state) for state in engines.values()] if isinstance(engines, dict) else []
    down = [state for state in states if state not in UP]
    if _stopped(str(table["status"])) or table.get("paused") or (down and all(map(_stopped, down))):
        return ReadyState.DRAINED, "drained or paused"
    return ReadyState.NOT_READY, "not ready"


def _stopped(state: str) -> bool:
    return state.startswith(STOPPED)


class HandshakeReader:
    """Reads the time since the last handshake with a peer from ``wg show``.

    WireGuard reports it by the wall clock. The reader counts from the moment at which the reported time changed,
    so that a clock that is set makes no handshake older or newer.
    """

    def __init__(self, interface: str, peer: str, *, program: str = "wg", timeout_s: float = 5.0) -> None:
        self._argv = [program, "show", interface, "latest-handshakes"]
        self._peer = peer
        self._timeout_s = timeout_s
        self._child = BoundedChild()
        self._reported: int | None = None
        self._at = self._looked = 0.0
        self._error = ""

    def age_s(self) -> float | None:
        """Return the seconds since the last handshake; ``None`` if there was none or it cannot be read."""
        try:
            reported = parse_handshakes(self._run(), self._peer)
        except ValueError as error:
            reason = str(error)
            if reason != self._error:
                LOG.warning("the last handshake cannot be read: %s", reason)
            self._error = reason
            return None
        if self._error:
            LOG.info("the last handshake can be read again")
        self._error = ""
        now = time.monotonic()
        if reported != self._reported:
            age = max(time.time() - reported, 0.0) if reported else 0.0
            # A change since the last look is not older than that look, whatever the wall clock shows.
            self._at = now - age if self._reported is None else max(now - age, self._looked)
            self._reported = reported
        self._looked = now
        return now - self._at if reported else None

    def _run(self) -> str:
        """Return the output of the program; raises :class:`ValueError` if it fails or does not end in time."""
        program = self._argv[0]
        # The result of a child that hung at an earlier look and has ended since.
        self._child.poll()
        if not self._child.start(self._argv, timeout_s=self._timeout_s):
            raise ValueError(f"{program} still hangs since an earlier look")
        result = self._child.wait(self._timeout_s + 3 * KILL_AFTER_S)
        if result is None or result.timed_out:
            raise ValueError(f"{program} did not end within {self._timeout_s:.0f} s")
        if not result.ok:
            raise ValueError((result.output.strip() or f"exit code {result.code}").splitlines()[-1])
        return result.output


def parse_handshakes(text: str, peer: str) -> int:
    """Return the time of the last handshake with ``peer`` in seconds since the epoch, 0 if there was none.

    ``text`` is the output of ``wg show … latest-handshakes``. Raises :class:`ValueError` if it has no such peer.
    """
    for line in text.splitlines():
        key, _, when = line.partition("\t")
        if key == peer:
            return int(when)
    raise ValueError(f"the interface has no peer {peer}")
