"""Exit codes: 1 is a missed SLO and nothing else; every other failure of a load test is 2."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.errors import UsageError
from appliance.system.stopping import Stop
from loadtests.outputs import Outputs
from tests.fakes.witness import long_run, witness
from tests.loadtests.stall import STALL
from tests.ports import free_port


class FixedServer:
    """A server that sends the same bytes for every request."""

    def __init__(self, response: bytes) -> None:
        self.response = response
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(self.response)

    def stop(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)


@pytest.fixture
def fixed_server(request: pytest.FixtureRequest) -> Iterator[FixedServer]:
    server = FixedServer(request.param)
    yield server
    server.stop()


def response(status: str, body: str = "{}", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, "content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "connection: close", "", body]).encode()


ALERT = b"\x15\x03\x03\x00\x02\x02\x46"
"""The response of a TLS server to plain HTTP: an alert, protocol version."""
NAMED = ("--model", "fake")
ENDINGS: list[tuple[str, bytes, tuple[str, ...], str, str]] = [
    ("http", ALERT, (), "k", "the server does not use HTTP; begin --url with https://"),
    ("http", ALERT, NAMED, "k", "the server does not use HTTP; begin --url with https://"),
    ("https", response("200 OK"), (), "k", "the server does not use TLS; begin --url with http://"),
    ("https", response("200 OK"), NAMED, "k", "the server does not use TLS; begin --url with http://"),
    (
        "http",
        response("401 Who"),
        (),
        "",
        "returns status 401: it needs a key: set APPLIANCE_API_KEY, or name a file of keys",
    ),
    ("http", response("401 Who"), NAMED, "", "it needs a key: set APPLIANCE_API_KEY, or name a file of keys"),
    ("http", response("401 Who"), (), "k", "returns status 401: the key is not valid"),
    ("http", response("401 Who"), NAMED, "k", "returns status 401 for model 'fake': the key is not valid"),
    (
        "http",
        response("403 No"),
        NAMED,
        "k",
        "returns status 403 for model 'fake': this key has no permission for it",
    ),
    ("http", response("404 Gone"), NAMED, "k", "there is no such model"),
    ("http", response("404 Gone"), (), "k", "/v1/models names no model (status 404); pass --model NAME"),
    ("http", response("200 OK", "[]"), (), "k", "names no model (status 200)"),
    ("http", response("200 OK", "no JSON"), (), "k", "names no model"),
    ("http", response("301 Moved", "", "location: https://x/"), NAMED, "k", "returns status 301, a redirect"),
    ("http", b"", (), "k", "check that the gateway runs there"),
    ("http", b"", NAMED, "k", "no answer (ConnectionResetError); check that the gateway runs there"),
]


@pytest.mark.parametrize(
    ("fixed_server", "scheme", "words", "key", "message"),
    [(sent, scheme, *rest) for scheme, sent, *rest in ENDINGS],
    ids=range(len(ENDINGS)),
    indirect=["fixed_server"],
)
def test_a_server_that_serves_no_request_ends_the_run(
    fixed_server: FixedServer,
    scheme: str,
    words: tuple[str, ...],
    key: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("APPLIANCE_API_KEY", key)
    monkeypatch.setenv("APPLIANCE_CONFIG", "/nonexistent")
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("of the run before")
    outputs = ("--json", str(old), "--html", str(new))
    assert main(["loadtest", "--url", f"{scheme}://{fixed_server.address}", *words, *outputs]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1, "one line"
    assert old.read_text() == "of the run before"
    assert not new.exists(), "an empty file could be taken for a report"


@pytest.mark.parametrize("words", [(), NAMED])
def test_a_closed_port_ends_the_run(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APPLIANCE_CONFIG", "/nonexistent")
    monkeypatch.delenv("APPLIANCE_API_KEY", raising=False)
    assert main(["loadtest", "--url", f"http://127.0.0.1:{free_port()}", *words]) == 2
    assert "no answer (ConnectionRefusedError); check that the gateway runs there" in capsys.readouterr().err


def test_every_key_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APPLIANCE_CONFIG", "/nonexistent")
    (tmp_path / "keys").write_text("good\nbad\n")
    with witness() as gateway:
        gateway.keys = {"good"}
        argv = ["loadtest", "--url", gateway.url, "--model", "fake", "--keys", str(tmp_path / "keys")]
        assert main([*argv, "--users", "2"]) == 2
    assert "returns status 401 for key number 2: the key is not valid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--json", "{folder}"), "--json {folder} cannot be written: it is a folder"),
        (("--html", "{folder}/none/page"), "its folder is missing"),
        (("--junit", "{folder}/file/xml"), "cannot be written: Not a directory"),
        (("--json", "{folder}/a", "--html", "{folder}/a"), "--json and --html both name {folder}/a"),
        (("--json", "{folder}/a", "--junit", "{folder}/link"), "--json and --junit both name {folder}/link"),
        (("--url", "http://127.0.0.1:99999"), "is not a valid address"),
        (("--keys", "{folder}/binary"), "is not UTF-16; save the file as UTF-8"),
    ],
)
def test_files_are_checked_before_the_first_request(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("APPLIANCE_CONFIG", "/nonexistent")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with witness() as gateway:
        argv = ["loadtest", "--url", gateway.url, *(word.format(folder=tmp_path) for word in words)]
        assert main(argv) == 2
        assert gateway.reached == {}
    assert message.format(folder=tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_an_error_of_one_file_keeps_the_others(tmp_path: Path) -> None:
    with Outputs({"--json": Path("/dev/full"), "--html": tmp_path / "html"}, Stop()) as outputs:
        outputs.write("--json", b"report")
        outputs.write("--html", b"long page")
        outputs.write("--html", b"page")
    assert "No space left on device" in str(outputs.refused)
    assert (tmp_path / "html").read_bytes() == b"page", "a second write replaces the first"


def test_an_existing_output_is_replaced_completely(tmp_path: Path) -> None:
    (tmp_path / "json").write_text("longer than the report")
    with Outputs({"--json": tmp_path / "json"}, Stop()) as outputs:
        outputs.write("--json", b"report")
    assert (tmp_path / "json").read_bytes() == b"report"
    with pytest.raises(UsageError), Outputs({"--a": tmp_path / "new", "--b": tmp_path}, Stop()):
        pytest.fail("a folder was opened")
    assert not (tmp_path / "new").exists()


def test_settings_of_other_programs_do_not_reach_the_load(tmp_path: Path) -> None:
    """Locust reads variables and files; the proxies of the environment are dead, and loopback needs none."""
    (tmp_path / "locust.conf").write_text("run-time = nonsense\nprocesses = many\n")
    (tmp_path / ".locust.conf").write_text("web-port = abc\n")
    dead_proxy = f"http://127.0.0.1:{free_port()}"
    environ = {"LOCUST_WEB_PORT": "abc", "LOCUST_RUN_TIME": "1s", "LOCUST_PROCESSES": "x", "APPLIANCE_SEED": "x"}
    environ |= {"APPLIANCE_SCENARIO": "none", "GEVENT_LOOP": "none", "HOME": str(tmp_path), "APPLIANCE_API_KEY": ""}
    environ |= dict.fromkeys(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"], dead_proxy)
    words = ("--users", "2", "--requests", "2", *STALL, "--json", tmp_path / "json")
    with (
        witness() as gateway,
        long_run(tmp_path, "loadtest", "--url", gateway.url, *words, cwd=tmp_path, **environ) as run,
    ):
        assert run.end() == 0, run.output
    report = json.loads((tmp_path / "json").read_text())
    assert (report["requests"], "gateway" in report["server"]) == (4, True)


def test_a_proxy_is_used_for_all_requests(tmp_path: Path) -> None:
    """Only the proxy reaches the server: models, metrics and load."""
    words = ("--users", "2", "--requests", "2", *STALL, "--json", tmp_path / "json")
    with witness() as proxy:
        environ = dict.fromkeys(("http_proxy", "HTTP_PROXY"), proxy.url) | {"no_proxy": "", "NO_PROXY": ""}
        argv = ("loadtest", "--url", "http://192.0.2.1", *words)
        with long_run(tmp_path, *argv, APPLIANCE_API_KEY="k", **environ) as run:
            assert run.end() == 0, run.output
        assert {"list", "look", "preflight", "sizing", "load"} <= proxy.reached.keys()
        assert proxy.hosts == {"192.0.2.1"}
    report = json.loads((tmp_path / "json").read_text())
    assert (report["requests"], "gateway" in report["server"]) == (4, True)
