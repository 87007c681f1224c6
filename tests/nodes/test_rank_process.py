"""The watchers of two ranks as processes on two loopback addresses; a shell script has the place of vLLM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, wait_until
from tests.nodes.site_of_two import site_of_two
from tests.ports import free_port

ENGINE = """#!/bin/sh
echo "$$" > "$0.pid"
trap 'echo term > "$0.ended"; exit 0' TERM
while :; do sleep 0.2; done
"""
"""It ends on SIGTERM, as vLLM does when no request runs."""


def environment(folder: Path, version: str, engine: str = ENGINE) -> Path:
    """Make an environment with vLLM of ``version``; return its Python."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(engine)
    python.chmod(0o755)
    (folder / "lib/python3.13/site-packages" / f"vllm-{version}.dist-info").mkdir(parents=True)
    return python


class TwoRanks:
    """A site with two ranks, and their watchers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        while True:
            self.port = free_port()
            with socket.socket() as next_port:
                try:
                    next_port.bind(("127.0.0.1", self.port + 1))
                except OSError:
                    continue
            break
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.pythons: dict[int, Path] = {}
        for rank in (0, 1):
            self.set_up(rank)

    def set_up(self, rank: int, version: str = "0.33.0", engine: str = ENGINE, **more: Any) -> None:
        """Give a rank its environment and its site."""
        folder = self._folder / f"rank{rank}-{version}-{len(self.pythons)}-{len(more)}"
        self.pythons[rank] = environment(folder, version, engine)
        site = site_of_two(self.pythons[rank], Path("/nowhere"), free_port(), master_port=self.port, **more)
        site["engines"]["big"]["port"] = 8101
        for number, name in enumerate(("gpu", "gpu2"), 1):
            site["hosts"][name]["link"] = {"address": f"127.0.0.{number}", "interface": "lo"}
        (self._folder / f"site{rank}.json").write_text(json.dumps(site))

    def start(self, rank: int) -> subprocess.Popen[bytes]:
        """Start the watcher of a rank."""
        words = ["-m", "appliance", "engine", "exec", "big", "--rank", str(rank)]
        site = self._folder / f"site{rank}.json"
        with (self._folder / f"log{rank}").open("wb") as log:
            started = self.processes[rank] = subprocess.Popen(
                [sys.executable, *words, "--config", str(site)],
                stderr=log, stdout=log, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        return started

    def text(self, rank: int) -> str:
        """Return the output of a watcher."""
        return (self._folder / f"log{rank}").read_text()

    def engine_pid(self, rank: int) -> int | None:
        """Return the process in the place of vLLM, from the start that the watcher reported."""
        file = self.pythons[rank].with_name("python.pid")
        return int(file.read_text()) if file.exists() and file.read_text().strip() else None

    def engine_runs(self, rank: int) -> bool:
        """Return whether that process exists."""
        pid = self.engine_pid(rank)
        return pid is not None and bool(_command(pid))

    def both_run(self) -> None:
        """Start both and wait for their engines."""
        self.start(1)
        self.start(0)
        wait_until(lambda: self.engine_runs(0) and self.engine_runs(1), "both engines run", 60)

    def code(self, rank: int) -> int:
        """Return the exit code of a watcher once it has ended."""
        return self.processes[rank].wait(60)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def two(tmp_path: Path) -> Iterator[TwoRanks]:
    ranks = TwoRanks(tmp_path)
    yield ranks
    for process in ranks.processes.values():
        process.kill()
        process.wait()
    for rank in (0, 1):
        pid = ranks.engine_pid(rank)
        if pid is not None and ranks.engine_runs(rank):
            os.kill(pid, signal.SIGKILL)


def test_a_rank_waits_for_its_leader_and_starts_nothing(two: TwoRanks) -> None:
    two.start(1)
    line = f"engine big rank 1: cannot reach the leader gpu (127.0.0.1), port {two.port + 1}"
    wait_until(lambda: line in two.text(1), "the rank reports it", 60)
    assert two.engine_pid(1) is None
    two.start(0)
    wait_until(lambda: two.engine_runs(0) and two.engine_runs(1), "both engines run", 60)


def test_a_leader_waits_for_its_ranks_and_ends_on_sigterm(two: TwoRanks) -> None:
    leader = two.start(0)
    wait_until(lambda: "waits for gpu2 (127.0.0.2)" in two.text(0), "the leader reports it", 60)
    leader.terminate()
    assert two.code(0) == 0
    assert two.engine_pid(0) is None


def test_the_end_of_a_leader_ends_the_other_rank(two: TwoRanks) -> None:
    two.both_run()
    two.processes[0].kill()
    assert two.code(1) == 1
    assert not two.engine_runs(1)
    assert "lost the leader gpu (127.0.0.1): it closed the connection; ends vLLM" in two.text(1)


def test_the_end_of_a_rank_ends_the_leader(two: TwoRanks) -> None:
    two.both_run()
    pid = two.engine_pid(1)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert (two.code(1), two.code(0)) == (9, 1)
    assert not two.engine_runs(0)
    assert "lost gpu2 (127.0.0.2)" in two.text(0)


def test_a_stop_lets_the_engine_end_by_itself(two: TwoRanks) -> None:
    two.both_run()
    two.processes[0].terminate()
    assert two.code(0) == 0
    assert two.pythons[0].with_name("python.ended").read_text() == "term\n"
    assert two.code(1) == 1, "its unit starts it again, to wait"


def test_an_engine_that_ignores_sigterm_is_killed(two: TwoRanks) -> None:
    two.set_up(1, engine=ENGINE.replace("echo term", "continue; echo term"), context=1024)
    two.both_run()
    two.processes[0].kill()
    assert two.code(1) == 1
    assert not two.engine_runs(1)


def test_another_version_is_refused_before_the_start(two: TwoRanks) -> None:
    two.set_up(1, version="0.32.0")
    two.start(0)
    two.start(1)
    assert two.code(1) == 1
    expected = "rank 1 has vLLM 0.32.0, the leader has 0.33.0; switch both hosts to the same generation"
    last = two.text(1).strip().splitlines()[-1]
    assert last.endswith(expected), last
    wait_until(lambda: f"refuses 127.0.0.2: {expected}" in two.text(0), "the leader reports it")
    assert two.processes[0].poll() is None
    assert (two.engine_pid(0), two.engine_pid(1)) == (None, None)


def test_another_configuration_is_refused(two: TwoRanks) -> None:
    two.set_up(1, context=512)
    two.start(0)
    two.start(1)
    assert two.code(1) == 1
    assert "rank 1 has another configuration of the engine; switch both hosts to the same site" in two.text(1)


STRANGE = (b"GET / HTTP/1.1\r\n\r\n", b"[" * 4000 + b"\n", b"x" * 10000, b'{"rank": 1}\n')


def test_a_stranger_gets_nothing(two: TwoRanks) -> None:
    two.start(0)
    wait_until(lambda: "waits for gpu2" in two.text(0), "the leader listens", 60)
    for source in ("127.0.0.2", "127.0.0.3"):
        for message in STRANGE:
            with socket.create_connection(("127.0.0.1", two.port + 1), 30, (source, 0)) as stranger:
                try:
                    stranger.sendall(message)
                    while received := stranger.recv(100):
                        assert received == b"\n"
                except ConnectionResetError:
                    continue
    two.start(1)
    wait_until(lambda: two.engine_runs(0) and two.engine_runs(1), "both engines run", 60)


def test_an_environment_without_vllm_is_one_line(two: TwoRanks) -> None:
    next(two.pythons[1].parent.parent.glob("lib/python3*/site-packages/*")).rmdir()
    two.start(1)
    assert two.code(1) == 2
    assert len(two.text(1).strip().splitlines()) == 1
    assert "its environment does not contain vLLM" in two.text(1)
