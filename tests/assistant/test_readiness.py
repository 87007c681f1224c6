"""The assistant reports its start to systemd when clients can connect, and not before."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from appliance.system.unix_socket import address
from tests.assistant.memory.conftest import memory_site
from tests.conftest import ROOT, START_S


@pytest.fixture
def folder() -> Iterator[Path]:
    # The path of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ready") as name:
        yield Path(name)


@contextmanager
def manager(folder: Path) -> Iterator[socket.socket]:
    """Receive messages as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(folder / "notify"))
        receiver.settimeout(START_S)
        yield receiver


def begin(folder: Path) -> subprocess.Popen[bytes]:
    """Start an assistant whose unit expects messages."""
    site = memory_site(folder, socket=str(folder / "assistant.sock"), acting_socket=str(folder / "acting.sock"))
    config = folder / "site.json"
    config.write_text(site.model_dump_json(exclude_defaults=True))
    return subprocess.Popen(
        [sys.executable, "-m", "appliance", "assistant", "--config", str(config)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(folder / "notify")},
        stderr=subprocess.PIPE,
    )


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client, address(path) as name:
        return client.connect_ex(name) == 0


def test_the_assistant_is_ready_when_its_socket_accepts_connections(folder: Path) -> None:
    with manager(folder) as receiver, begin(folder) as process:
        try:
            assert receiver.recv(100) == b"READY=1"
            assert connects(folder / "assistant.sock")
        finally:
            process.terminate()
        process.wait(60)


@pytest.mark.parametrize("obstacle", ["used", "damaged"])
def test_an_assistant_that_cannot_start_is_never_ready(folder: Path, obstacle: str) -> None:
    with socket.socket(socket.AF_UNIX) as other, manager(folder) as receiver:
        if obstacle == "used":
            other.bind(str(folder / "assistant.sock"))
            other.listen()
        else:
            (folder / "assistant").mkdir()
            (folder / "assistant/assistant.sqlite").write_bytes(b"not a database" * 1000)
        with begin(folder) as process:
            _, shown = process.communicate(timeout=START_S)
        assert process.returncode != 0, shown
        receiver.setblocking(False)
        with suppress(BlockingIOError):
            pytest.fail(f"received {receiver.recv(100)!r}")
