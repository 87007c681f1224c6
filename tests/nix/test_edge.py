"""The edge as it is configured, in a real nginx on loopback: names, limits, and tokens that are not held back."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.nix import checker
from tests.nix.test_rendered import edge_conf
from tests.ports import free_port

DOMAIN = "llm.example.org"
PAUSE = 0.3


class StandInGateway(BaseHTTPRequestHandler):
    """Answers everything with two events, :data:`PAUSE` apart."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for _ in range(2):
            self.wfile.write(b"data: x\n\n")
            self.wfile.flush()
            time.sleep(PAUSE)

    def do_GET(self) -> None:
        self.do_POST()

    def do_OPTIONS(self) -> None:
        """Repeat what the page asks for, so that a test sees whether it arrived."""
        self.send_response(204)
        self.send_header("Access-Control-Allow-Origin", self.headers["Origin"])
        self.send_header("Access-Control-Allow-Headers", self.headers["Access-Control-Request-Headers"])
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with running(tmp_path_factory.mktemp("edge")) as port:
        yield port


@contextmanager
def running(folder: Path, *extra: str) -> Iterator[int]:
    """The port of nginx, with the VPS's configuration and the modules ``extra``; a stand-in for the gateway."""
    nginx = checker.require("nginx")
    folder.chmod(0o755)
    port = free_port()
    gateway = ThreadingHTTPServer(("127.0.0.1", 0), StandInGateway)
    gateway.daemon_threads = True
    threading.Thread(target=gateway.serve_forever, daemon=True).start()
    text = edge_conf(folder, f"127.0.0.1:{free_port()}", f"127.0.0.1:{port}", extra)
    text = text.replace("10.77.0.1:8000", f"127.0.0.1:{gateway.server_address[1]}")
    (folder / "nginx.conf").write_text("user root;\n" + text)
    process = subprocess.Popen([nginx, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
    for _ in range(50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(timeout=10)
        gateway.shutdown()
        gateway.server_close()


class Named(HTTPSConnection):
    """A connection to loopback that asks for ``name`` in the TLS handshake."""

    def __init__(self, port: int, name: str = DOMAIN) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        super().__init__(name, port, timeout=10, context=context)
        self._create_connection = lambda address, *rest: socket.create_connection(("127.0.0.1", port), 10)


def ask(port: int, path: str, body: bytes = b"{}", headers: dict[str, str] | None = None) -> int:
    connection = Named(port)
    try:
        connection.request("POST", path, body, headers or {})
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_api_is_reached_and_nothing_else(edge: int) -> None:
    for path in ("/v1/chat/completions", "/tokenize", "/detokenize?x"):
        assert ask(edge, path) == 200, path
    for path in (
        "/tokenize/",
        "/tokenizer",
        "/detokenize/x",
        "//tokenize",
        "/Tokenize",
        "/tokenize/../sleep",
        "/",
        "/metrics",
        "/sleep",
        "//v1/models",
        "/v2/x",
        "/v1/../sleep",
        "/v1/%2e%2e/sleep",
        "/v1/..%2fsleep",
    ):
        assert ask(edge, path) in {400, 404}, path


def test_an_unknown_name_gets_no_certificate(edge: int) -> None:
    connection = Named(edge, "other.example.org")
    with pytest.raises(ssl.SSLError):
        connection.request("GET", "/v1/models")
    connection.close()


def test_tokens_are_not_held_back(edge: int) -> None:
    connection = Named(edge)
    begun = time.monotonic()
    connection.request("POST", "/v1/chat/completions", b"{}")
    answer = connection.getresponse()
    assert answer.read1(9) == b"data: x\n\n"
    first = time.monotonic() - begun
    answer.read()
    connection.close()
    assert first < PAUSE, f"the first token came after {first:.2f} s"


def test_a_body_over_the_limit_is_refused(edge: int) -> None:
    assert ask(edge, "/v1/chat/completions", b"", {"Content-Length": str(16777217)}) == 413


def test_a_header_over_the_limit_is_refused(edge: int) -> None:
    assert ask(edge, "/v1/models", headers={"X-Long": "x" * 9000}) == 400


def test_one_key_cannot_flood(edge: int) -> None:
    """20 a second and a burst of 40: of 120 at once some are refused, and another key is still served."""
    statuses: list[int] = []
    key = {"Authorization": "Bearer sk-greedy"}
    threads = [
        threading.Thread(target=lambda: statuses.append(ask(edge, "/v1/x", headers=key))) for _ in range(120)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 429 in statuses
    assert 40 <= statuses.count(200) < 120
    time.sleep(1.5)
    assert ask(edge, "/v1/x", headers={"Authorization": "Bearer sk-other"}) == 200


PREFLIGHT = {
    "Origin": "https://chat.example.org",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def answer_of(port: int, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    connection = Named(port)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_a_preflight_and_its_answer_pass(edge: int, path: str) -> None:
    status, headers = answer_of(edge, "OPTIONS", path, PREFLIGHT)
    assert (status, headers["access-control-allow-origin"]) == (204, "https://chat.example.org")
    assert headers["access-control-allow-headers"] == "authorization,content-type"


@pytest.mark.parametrize(
    ("extra", "allowed", "refused"),
    [
        ((), (), ("https://chat.example.org",)),
        (
            ("tests/nix/browser.nix",),
            ("https://chat.example.org", "app://obsidian.md"),
            ("https://other.example.org", "null", "https://chat.example.org.evil.org", ""),
        ),
        (("tests/nix/any_browser.nix",), ("https://any.example.org",), ("",)),
    ],
)
def test_allowed_pages_can_read_what_the_edge_itself_answers(
    extra: tuple[str, ...], allowed: tuple[str, ...], refused: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "edge").mkdir()
    with running(tmp_path / "edge", *extra) as port:
        for origin in (*allowed, *refused):
            sent = {"Content-Length": str(2**30)} | ({"Origin": origin} if origin else {})
            status, headers = answer_of(port, "POST", "/v1/chat/completions", sent)
            assert status == 413
            named = {"*", origin} if origin in allowed else {None}
            assert headers.get("access-control-allow-origin") in named, origin
            assert ("access-control-expose-headers" in headers) == (origin in allowed)
