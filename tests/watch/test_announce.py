"""Announcements to the dead man's switch: accepted, or one error within the limit."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from appliance.errors import StartError
from appliance.watch.announce import MAX_PLANNED_S, announce
from tests.ports import free_port


class _Switch(BaseHTTPRequestHandler):
    seen: list[tuple[str, Any]]
    status = 200

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, body))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"not now")

    def log_message(self, *_: object) -> None:
        """Keep the output of the tests clean."""


class _Refusing(_Switch):
    status = 400


def _serve(handler: type[_Switch]) -> Iterator[str]:
    handler.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", free_port()), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def switch() -> Iterator[str]:
    yield from _serve(_Switch)


@pytest.fixture
def refusing() -> Iterator[str]:
    yield from _serve(_Refusing)


def test_an_announcement_arrives(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy of the environment accepts no connection: the tunnel needs none.
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    announce(switch, "on-battery", planned_s=600)
    assert _Switch.seen == [("/announce", {"kind": "on-battery", "planned_s": 600})]


@pytest.mark.parametrize("planned_s", [math.inf, math.nan, 1e300])
def test_an_endless_absence_has_a_length(switch: str, planned_s: float) -> None:
    announce(switch, "going-down", planned_s=planned_s)
    assert _Switch.seen == [("/announce", {"kind": "going-down", "planned_s": MAX_PLANNED_S})]


def test_a_refusal_is_one_error(refusing: str) -> None:
    with pytest.raises(StartError, match=r"refused `back` with HTTP 400: not now"):
        announce(refusing, "back")


@pytest.mark.parametrize(
    ("url", "kind"),
    [("http://127.0.0.1:{port}", "holiday"), ("10.77.0.2:9097", "back"), ("http://[", "back"), ("", "back")],
)
def test_bad_input_is_one_error(url: str, kind: str) -> None:
    with pytest.raises(StartError):
        announce(url.format(port=free_port()), kind)


def test_a_switch_that_does_not_listen_is_one_error() -> None:
    with pytest.raises(StartError, match=r"did not respond \(Connection refused\)"):
        announce(f"http://127.0.0.1:{free_port()}", "back")


def test_a_switch_that_hangs_takes_the_limit_only() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as hanging:
        began = time.monotonic()
        with pytest.raises(StartError, match="did not respond"):
            announce(f"http://127.0.0.1:{hanging.getsockname()[1]}", "back", timeout_s=0.2)
        # Without a limit, it never returns.
        assert time.monotonic() - began < 30
