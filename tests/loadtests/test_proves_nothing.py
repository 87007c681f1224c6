"""Exit code 1 means that an SLO is missed. Every other failure of a load test is 2: it proves nothing."""

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
from tests.gateway.running.witness import long_run, witness
from tests.ports import free_port


class Parrot:
    """A server that answers every request with the same bytes."""

    def __init__(self, words: bytes) -> None:
        self.words = words
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
                    connection.sendall(self.words)

    def stop(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)


@pytest.fixture
def parrot(request: pytest.FixtureRequest) -> Iterator[Parrot]:
    made = Parrot(request.param)
    yield made
    made.stop()


def says(status: str, body: str = "{}", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, "content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "connection: close", "", body]).encode()


ALERT = b"\x15\x03\x03\x00\x02\x02\x46"
"""What a TLS server answers to plain HTTP: an alert, protocol version."""
NAMED = ("--model", "fake")
ENDINGS: list[tuple[str, bytes, tuple[str, ...], str, str]] = [
    ("http", ALERT, (), "k", "does not speak HTTP there; begin --url with https://"),
    ("http", ALERT, NAMED, "k", "does not speak HTTP there; begin --url with https://"),
    ("https", says("200 OK"), (), "k", "it does not speak TLS there; begin --url with http://"),
    ("https", says("200 OK"), NAMED, "k", "it does not speak TLS there; begin --url with http://"),
    ("http", says("401 Who"), (), "", "answers 401: it needs a key: set APPLIANCE_API_KEY, or name a file of keys"),
    ("http", says("401 Who"), NAMED, "", "it needs a key: set APPLIANCE_API_KEY, or name a file of keys"),
    ("http", says("401 Who"), (), "k", "answers 401: the key is not valid"),
    ("http", says("401 Who"), NAMED, "k", "answers 401 for model 'fake': the key is not valid"),
    ("http", says("403 No"), NAMED, "k", "answers 403 for model 'fake': this key may not use it"),
    ("http", says("404 Gone"), NAMED, "k", "there is no such model"),
    ("http", says("404 Gone"), (), "k", "/v1/models names no model (status 404); say --model NAME"),
    ("http", says("200 OK", "[]"), (), "k", "names no model (status 200)"),
    ("http", says("200 OK", "no JSON"), (), "k", "names no model"),
    ("http", says("301 Moved", "", "location: https://x/"), NAMED, "k", "answers 301, a redirect"),
    ("http", b"", (), "k", "is the gateway running there?"),
    ("http", b"", NAMED, "k", "no answer (ConnectionResetError); is the gateway running there?"),
]


@pytest.mark.parametrize(
    ("parrot", "scheme", "words", "key", "said"),
    [(answer, scheme, *rest) for scheme, answer, *rest in ENDINGS],
    ids=range(len(ENDINGS)),
    indirect=["parrot"],
)
def test_a_server_that_cannot_be_tested(
    parrot: Parrot,
    scheme: str,
    words: tuple[str, ...],
    key: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("APPLIANCE_API_KEY", key)
    monkeypatch.setenv("APPLIANCE_CONFIG", "/nonexistent")
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("of the run before")
    outputs = ("--json", str(old), "--html", str(new))
    assert main(["loadtest", "--url", f"{scheme}://{parrot.address}", *words, *outputs]) == 2
    seen = capsys.readouterr().err
    assert said in seen
    assert seen.count("\n") == 1, "one sentence"
    assert old.read_text() == "of the run before"
    assert not new.exists(), "an empty file would look like a report"


@pytest.mark.parametrize("words", [(), NAMED])
def test_nothing_listens(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APPLIANCE_CONFIG", "/nonexistent")
    monkeypatch.delenv("APPLIANCE_API_KEY", raising=False)
    assert main(["loadtest", "--url", f"http://127.0.0.1:{free_port()}", *words]) == 2
    assert "no answer (ConnectionRefusedError); is the gateway running there?" in capsys.readouterr().err


def test_every_key_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APPLIANCE_CONFIG", "/nonexistent")
    (tmp_path / "keys").write_text("good\nbad\n")
    with witness() as gateway:
        gateway.keys = {"good"}
        argv = ["loadtest", "--url", gateway.url, "--model", "fake", "--keys", str(tmp_path / "keys")]
        assert main([*argv, "--users", "2"]) == 2
    assert "answers 401 for key number 2: the key is not valid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
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
def test_what_cannot_be_written_or_read_is_said_before_any_request(
    words: tuple[str, ...],
    said: str,
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
    assert said.format(folder=tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_disk_that_refuses_one_file_keeps_the_others(tmp_path: Path) -> None:
    with Outputs({"--json": Path("/dev/full"), "--html": tmp_path / "html"}, Stop()) as outputs:
        outputs.write("--json", b"report")
        outputs.write("--html", b"long page")
        outputs.write("--html", b"page")
    assert "No space left on device" in str(outputs.refused)
    assert (tmp_path / "html").read_bytes() == b"page", "what is written again replaces what was there"


def test_an_output_that_was_there_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "json").write_text("longer than the report")
    with Outputs({"--json": tmp_path / "json"}, Stop()) as outputs:
        outputs.write("--json", b"report")
    assert (tmp_path / "json").read_bytes() == b"report"
    with pytest.raises(UsageError), Outputs({"--a": tmp_path / "new", "--b": tmp_path}, Stop()):
        pytest.fail("it opened a folder")
    assert not (tmp_path / "new").exists()


def test_settings_of_others_do_not_reach_the_load(tmp_path: Path) -> None:
    """Locust reads variables and files; proxies of the environment lead nowhere, and loopback needs none."""
    (tmp_path / "locust.conf").write_text("run-time = nonsense\nprocesses = many\n")
    (tmp_path / ".locust.conf").write_text("web-port = abc\n")
    nowhere = f"http://127.0.0.1:{free_port()}"
    environ = {"LOCUST_WEB_PORT": "abc", "LOCUST_RUN_TIME": "1s", "LOCUST_PROCESSES": "x", "APPLIANCE_SEED": "x"}
    environ |= {"APPLIANCE_SCENARIO": "none", "GEVENT_LOOP": "none", "HOME": str(tmp_path), "APPLIANCE_API_KEY": ""}
    environ |= dict.fromkeys(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"], nowhere)
    words = ("--users", "2", "--requests", "2", "--client-lag-ms", "5000", "--json", tmp_path / "json")
    with (
        witness() as gateway,
        long_run(tmp_path, "loadtest", "--url", gateway.url, *words, cwd=tmp_path, **environ) as run,
    ):
        assert run.end() == 0, run.output
    report = json.loads((tmp_path / "json").read_text())
    assert (report["requests"], "gateway" in report["server"]) == (4, True)


def test_a_proxy_is_used_for_everything_or_for_nothing(tmp_path: Path) -> None:
    """The list of models, the metrics and the load of a server that only the proxy can reach."""
    words = ("--users", "2", "--requests", "2", "--client-lag-ms", "5000", "--json", tmp_path / "json")
    with witness() as proxy:
        environ = dict.fromkeys(("http_proxy", "HTTP_PROXY"), proxy.url) | {"no_proxy": "", "NO_PROXY": ""}
        asked = ("loadtest", "--url", "http://192.0.2.1", *words)
        with long_run(tmp_path, *asked, APPLIANCE_API_KEY="k", **environ) as run:
            assert run.end() == 0, run.output
        assert {"list", "look", "preflight", "sizing", "load"} <= proxy.reached.keys()
        assert proxy.hosts == {"192.0.2.1"}
    report = json.loads((tmp_path / "json").read_text())
    assert (report["requests"], "gateway" in report["server"]) == (4, True)
