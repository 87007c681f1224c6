"""A program that is started by fork behaves as one that Python starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MOCK_ENGINE, ROOT, http, start_mock, wait_until
from tests.preloaded import ChildProcess, start_program

RUN_S = 100.0


def run(log: Path, *words: str, cwd: Path, **environment: str) -> ChildProcess:
    with log.open("wb") as output:
        own = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        return start_program([sys.executable, "-m", *words], output, own, cwd)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_the_exit_code_is_that_of_the_program(tmp_path: Path, number: signal.Signals, code: int) -> None:
    engine = start_mock(tmp_path / "log")
    assert engine.process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        engine.process.wait(0.01)
    engine.process.send_signal(number)
    assert engine.process.wait(RUN_S) == code
    assert engine.process.poll() == engine.process.returncode == code
    # A signal after the end has no effect.
    engine.process.terminate()


def test_the_end_of_one_is_seen_while_the_others_run(tmp_path: Path) -> None:
    engines = [start_mock(tmp_path / f"{number}.log") for number in range(3)]
    try:
        assert engines[1].stop() == 0
        for engine in (engines[0], engines[2]):
            assert engine.process.poll() is None
            assert http(engine.url + "/stats").status == 200
    finally:
        assert [engine.stop() for engine in engines] == [0, 0, 0]


def test_output_and_exit_code_of_a_failed_start(tmp_path: Path) -> None:
    process = run(tmp_path / "log", *MOCK_ENGINE[2:], "--port", "x", cwd=tmp_path)
    assert process.wait(RUN_S) == 2
    assert "argument --port: invalid int value: 'x'" in (tmp_path / "log").read_text()


def test_the_command_line_reads_files_in_its_own_folder(tmp_path: Path) -> None:
    process = run(tmp_path / "log", "appliance", "gateway", "--config", "none.json", cwd=tmp_path)
    assert process.wait(RUN_S) == 2
    assert "error: none.json: " in (tmp_path / "log").read_text()


def test_the_program_has_no_descriptor_of_another(tmp_path: Path) -> None:
    first, second = start_mock(tmp_path / "1.log"), start_mock(tmp_path / "2.log")
    try:
        of_first, of_second = (
            {str(one.readlink()) for one in Path(f"/proc/{engine.process.pid}/fd").iterdir()}
            for engine in (first, second)
        )
        assert "anon_inode:[pidfd]" not in of_second
        assert not [link for link in of_first & of_second if link.startswith(("pipe:", "socket:", str(tmp_path)))]
    finally:
        first.stop()
        second.stop()


@pytest.mark.parametrize("name", ["LD_BIND_NOW", "MALLOC_ARENA_MAX", "PYTHONHASHSEED"])
def test_a_variable_that_is_read_before_the_program_has_its_effect(tmp_path: Path, name: str) -> None:
    process = run(tmp_path / "log", *MOCK_ENGINE[2:], cwd=ROOT, **{name: "1"})
    try:
        wait_until(lambda: b"tokens come by the clock" in (tmp_path / "log").read_bytes(), "the start", RUN_S)
        # The kernel shows the variables of the last execve.
        assert f"{name}=1".encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    finally:
        process.terminate()
    assert process.wait(RUN_S) == 0
