"""The configured edge in a real nginx on loopback: host names, limits, and tokens without buffering."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.gateway.running.media import BOUNDARY, audio, field, form, media_service, sound, text_of
from tests.nix import checker
from tests.nix.test_rendered import edge_conf
from tests.ports import free_port

DOMAIN = "llm.example.org"


class StandInGateway(BaseHTTPRequestHandler):
    """A gateway that responds to each request with two events; on /v1/slow the second waits for :data:`second`."""

    second = threading.Event()
    arrived = threading.Event()
    """Set when the beginning of audio has arrived."""

    def do_POST(self) -> None:
        if self.path.startswith("/v1/audio/"):
            length = int(self.headers["Content-Length"])
            begin = self.rfile.read(min(9, length))
            self.arrived.set()
            self.rfile.read(length - len(begin))
            self.headers.replace_header("Content-Length", "0")
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        # A client of these tests may disconnect before the end.
        with suppress(ConnectionError):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b"data: x\n\n")
            self.wfile.flush()
            if self.path == "/v1/slow":
                self.second.wait(60)
            self.wfile.write(b"data: x\n\n")

    def do_GET(self) -> None:
        self.do_POST()

    def do_OPTIONS(self) -> None:
        """Return the requested headers, so that a test sees whether they arrived."""
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
def running(folder: Path, *extra: str, gateway_port: int | None = None) -> Iterator[int]:
    """Run nginx as on the VPS, with the modules ``extra``; yield its port.

    The gateway is the one at ``gateway_port``, or a stand-in.
    """
    nginx = checker.require("nginx")
    folder.chmod(0o755)
    port = free_port()
    gateway = ThreadingHTTPServer(("127.0.0.1", 0), StandInGateway)
    gateway.daemon_threads = True
    threading.Thread(target=gateway.serve_forever, daemon=True).start()
    text = edge_conf(folder, f"127.0.0.1:{free_port()}", f"127.0.0.1:{port}", extra)
    text = text.replace("10.77.0.1:8000", f"127.0.0.1:{gateway_port or gateway.server_address[1]}")
    (folder / "nginx.conf").write_text("user root;\n" + text)
    process = subprocess.Popen([nginx, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=10)
        gateway.shutdown()
        gateway.server_close()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when nginx listens on ``port``; fail the test if it ended or does not listen within 30 s."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, "nginx ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nginx does not listen on port {port}")


class NamedConnection(HTTPSConnection):
    """A connection to loopback that requests ``name`` in the TLS handshake."""

    def __init__(self, port: int, name: str = DOMAIN) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        super().__init__(name, port, timeout=10, context=context)
        self._create_connection = lambda address, *rest: socket.create_connection(("127.0.0.1", port), 10)


def post_status(port: int, path: str, body: bytes = b"{}", headers: dict[str, str] | None = None) -> int:
    connection = NamedConnection(port)
    try:
        connection.request("POST", path, body, headers or {})
        return connection.getresponse().status
    finally:
        connection.close()


def test_only_the_paths_of_the_api_reach_the_gateway(edge: int) -> None:
    page = ("/", "/?lang=ru", "/page/0/main.js", "/session")
    for path in ("/v1/chat/completions", "/tokenize", "/detokenize?x", *page):
        assert post_status(edge, path) == 200, path
    for path in (
        "/tokenize/",
        "/tokenizer",
        "/detokenize/x",
        "//tokenize",
        "/Tokenize",
        "/tokenize/../sleep",
        "/page/../sleep",
        "/session/",
        "/sessions",
        "/metrics",
        "/sleep",
        "//v1/models",
        "/v2/x",
        "/v1/../sleep",
        "/v1/%2e%2e/sleep",
        "/v1/..%2fsleep",
    ):
        assert post_status(edge, path) in {400, 404}, path


def test_an_unknown_name_gets_no_certificate(edge: int) -> None:
    connection = NamedConnection(edge, "other.example.org")
    with pytest.raises(ssl.SSLError):
        connection.request("GET", "/v1/models")
    connection.close()


def test_tokens_are_not_buffered(edge: int) -> None:
    StandInGateway.second.clear()
    connection = NamedConnection(edge)
    connection.request("POST", "/v1/slow", b"{}")
    response = connection.getresponse()
    # The stand-in sends the second event only after this one has arrived.
    assert response.read1(9) == b"data: x\n\n"
    StandInGateway.second.set()
    assert response.read() == b"data: x\n\n"
    connection.close()


def test_a_body_over_the_limit_is_refused(edge: int) -> None:
    assert post_status(edge, "/v1/chat/completions", b"", {"Content-Length": str(16777217)}) == 413


AUDIO = "/v1/audio/transcriptions"


def test_audio_has_a_limit_of_its_own(edge: int) -> None:
    for path in (AUDIO, "/v1/audio/translations"):
        assert post_status(edge, path, b"", {"Content-Length": str(26 * 2**20 + 1)}) == 413
        assert post_status(edge, path, b"x" * (20 * 2**20)) == 200
    # Speech and images are JSON.
    assert post_status(edge, "/v1/audio/speech", b"", {"Content-Length": str(20 * 2**20)}) == 413


def test_audio_reaches_the_gateway_before_its_end(edge: int) -> None:
    StandInGateway.arrived.clear()
    connection = NamedConnection(edge)
    connection.putrequest("POST", AUDIO)
    connection.putheader("Content-Length", "100009")
    connection.endheaders(b"beginning")
    assert StandInGateway.arrived.wait(30)
    connection.send(bytes(100_000))
    assert connection.getresponse().status == 200
    connection.close()


def test_audio_through_nginx_and_the_gateway(tmp_path: Path) -> None:
    """Mistakes of a client have their own status and field behind the edge as well."""
    (tmp_path / "edge").mkdir()
    with (
        media_service(tmp_path / "site", tasks=("fake",)) as service,
        running(tmp_path / "edge", gateway_port=service.gateway.port) as port,
    ):

        def send_form(body: bytes, **headers: str) -> tuple[str, str | None, str]:
            connection = NamedConnection(port)
            kind = f"multipart/form-data; boundary={BOUNDARY.decode()}"
            sent = {"Authorization": f"Bearer {service.key}", "Content-Type": kind} | headers
            connection.request("POST", AUDIO, body, sent)
            found = json.loads(connection.getresponse().read())
            connection.close()
            error = found.get("error", {})
            return error.get("code", ""), error.get("param"), found.get("text", error.get("message"))

        data = sound(2**21)
        assert send_form(form(audio(data), field("model", "whisper")))[2] == text_of(data)
        assert send_form(b"{}", **{"Content-Type": "application/json"})[:2] == ("unsupported_media_type", "file")
        assert send_form(form(audio(b""), field("model", "whisper")))[:2] == ("invalid_request", "file")
        assert send_form(form(audio(data)))[:2] == ("invalid_request", "model")
        assert "its task is generate" in send_form(form(audio(data), field("model", "fake")))[2]
        assert (
            send_form(form(audio(data), field("model", "whisper")), Authorization="Bearer x")[0]
            == "invalid_api_key"
        )
        assert send_form(b"", **{"Content-Length": str(2**30)})[0] == "request_too_large"


def test_a_header_over_the_limit_is_refused(edge: int) -> None:
    assert post_status(edge, "/v1/models", headers={"X-Long": "x" * 9000}) == 400


def test_the_uploads_of_one_address_are_limited(edge: int) -> None:
    uploads = [NamedConnection(edge) for _ in range(8)]
    try:
        for one in uploads:
            one.putrequest("POST", "/v1/files")
            one.putheader("Content-Length", "1000000")
            one.endheaders(b"the beginning")
        # nginx counts a request when it has read the head.
        wait_until(lambda: post_status(edge, "/v1/files") == 429, "the limit", 10)
        assert post_status(edge, "/v1/chat/completions") == 200
    finally:
        for one in uploads:
            one.close()
    wait_until(lambda: post_status(edge, "/v1/files") == 200, "the end of the uploads", 10)


def test_the_requests_of_one_key_are_limited(tmp_path: Path) -> None:
    """At 1 per second and a burst of 2, most of 40 requests are refused; another key is still served."""
    (tmp_path / "edge").mkdir()
    statuses: list[int] = []
    key = {"Authorization": "Bearer sk-greedy"}
    with running(tmp_path / "edge", "tests/nix/slow_key.nix") as port:
        begun = time.monotonic()
        threads = [
            threading.Thread(target=lambda: statuses.append(post_status(port, "/v1/x", headers=key)))
            for _ in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = time.monotonic() - begun
        assert set(statuses) == {200, 429}
        assert 3 <= statuses.count(200) <= 3 + taken + 1
        assert post_status(port, "/v1/x", headers={"Authorization": "Bearer sk-other"}) == 200


def test_the_log_ins_of_one_address_are_limited(tmp_path: Path) -> None:
    (tmp_path / "edge").mkdir()
    with running(tmp_path / "edge") as port:
        statuses = [post_status(port, "/session") for _ in range(40)]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) <= 30
        assert post_status(port, "/v1/chat/completions") == 200
        assert post_status(port, "/session", b"x" * 5000) in {413, 429}


def test_the_requests_of_one_session_are_limited_like_those_of_its_key(tmp_path: Path) -> None:
    (tmp_path / "edge").mkdir()
    cookie = {"Cookie": "a=b; __Host-session=v1.0123456789ab.1.ff"}
    other = {"Cookie": "__Host-session=v1.ba9876543210.1.ff"}
    with running(tmp_path / "edge", "tests/nix/slow_key.nix") as port:
        statuses = [post_status(port, "/v1/x", headers=cookie) for _ in range(12)]
        assert 429 in statuses
        assert post_status(port, "/v1/x", headers=other) == 200


PREFLIGHT = {
    "Origin": "https://chat.example.org",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def response_of(port: int, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    connection = NamedConnection(port)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.headers.items()}
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_a_preflight_and_its_response_pass(edge: int, path: str) -> None:
    status, headers = response_of(edge, "OPTIONS", path, PREFLIGHT)
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
def test_allowed_pages_can_read_responses_of_the_edge(
    extra: tuple[str, ...], allowed: tuple[str, ...], refused: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "edge").mkdir()
    with running(tmp_path / "edge", *extra) as port:
        for origin in (*allowed, *refused):
            sent = {"Content-Length": str(2**30)} | ({"Origin": origin} if origin else {})
            status, headers = response_of(port, "POST", "/v1/chat/completions", sent)
            assert status == 413
            named = {"*", origin} if origin in allowed else {None}
            assert headers.get("access-control-allow-origin") in named, origin
            assert ("access-control-expose-headers" in headers) == (origin in allowed)
