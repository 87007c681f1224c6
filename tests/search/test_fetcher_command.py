"""`appliance fetcher` as a process: its interface, its key, its refusals, a socket that it inherits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.cli import main
from tests.conftest import ROOT, START_S, Response, http, wait_until

KEY = "k" * 32


@contextmanager
def fetcher(*arguments: str, inherited: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command as systemd starts it, with the listening socket ``inherited``."""
    # A program that gives the socket the number 3 and keeps its process id for the command.
    number = inherited.fileno()
    text = (
        f"import os, sys\nos.dup2({number}, 3)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\nos.execv(sys.argv[1], sys.argv[1:])"
    )
    words = [sys.executable, "-c", text, sys.executable, "-m", "appliance", "fetcher", *arguments]
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, pass_fds=[number])
    try:
        yield process
    finally:
        process.terminate()
        # The server passes the signal on once it has ended in order.
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)


def ready(process: subprocess.Popen[bytes], url: str) -> None:
    def responds() -> bool:
        assert process.poll() is None
        try:
            return http(f"{url}/health").status == 200
        except OSError:
            return False

    wait_until(responds, "the fetcher", START_S)


def fetch(url: str, body: object, key: str = KEY) -> Response:
    return http(f"{url}/fetch", body=body, key=key)


def test_the_command_refuses_private_pages_and_other_keys_on_a_socket_of_the_service_manager(
    tmp_path: Path,
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with fetcher("--key-file", str(file), inherited=listener) as process:
            ready(process, url)
            for page in (f"{url}/health", "http://169.254.169.254/latest", "http://[::1]/"):
                reply = fetch(url, {"url": page})
                assert reply.status == 422
                assert reply.json["error"]["code"] == "address_not_allowed"
            assert fetch(url, {"url": "http://example.com/"}, "other").status == 401
            assert fetch(url, {"url": 3}).status == 400
            assert fetch(url, {"url": "http://a.example/", "proxy": "http://b.example"}).status == 400
            assert fetch(url, {"url": "x" * 70_000}).status == 413


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0"], "is a public address"),
        (["--listen", "8.8.8.8"], "is a public address"),
        (["--listen", "vps"], "write an address"),
        (["--deny", "home"], "write a network"),
        (["--key-file", "/nonexistent"], "put the key of the fetcher into it"),
    ],
)
def test_arguments_that_are_not_valid_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetcher", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_short_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "key"
    file.write_text("short")
    assert main(["fetcher", "--key-file", str(file)]) == 2
    assert "at least 16 characters" in capsys.readouterr().err
