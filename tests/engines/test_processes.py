"""Supervised processes: an impossible restart is reported and retried, and never ends the supervision."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from appliance.contract.model import Site
from appliance.engines import processes
from appliance.engines.lifecycle import ChildControl
from appliance.engines.processes import ChildProcesses, ProcessSpec
from appliance.errors import StartError, StoreError
from tests.conftest import a_site

PROGRAM = "#!/bin/sh\necho up\nexec sleep 600\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(processes, "LAST_DELAY_S", 0.05)


@pytest.fixture
async def program(tmp_path: Path) -> Path:
    file = tmp_path / "program"
    file.write_text(PROGRAM)
    file.chmod(0o755)
    return file


@pytest.fixture
async def reported() -> list[tuple[str, str]]:
    return []


@pytest.fixture
async def children(reported: list[tuple[str, str]]) -> AsyncIterator[ChildProcesses]:
    kept = ChildProcesses(None, lambda name, reason: reported.append((name, reason)))
    yield kept
    await kept.stop_all()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - no event reports the state of a process
            await asyncio.sleep(0.005)


async def runs(log: Path) -> None:
    """Wait until the shell has read its script, which may be removed from then on."""
    await until(lambda: log.exists() and "up" in log.read_text())


def kill(children: ChildProcesses) -> None:
    pid = children.state("unit").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def remove(program: Path, log: Path) -> None:
    program.rename(program.with_suffix(".away"))


def forbid(program: Path, log: Path) -> None:
    program.chmod(0o644)


def corrupt(program: Path, log: Path) -> None:
    program.write_bytes(b"\x7fELF, but not really")


def block_log(program: Path, log: Path) -> None:
    log.unlink()
    log.mkdir()


def block_log_folder(program: Path, log: Path) -> None:
    log.unlink()
    log.parent.rmdir()
    log.parent.write_text("a file")


def restore(program: Path, log: Path) -> None:
    program.unlink(missing_ok=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    if log.is_dir():
        log.rmdir()
    if log.parent.is_file():
        log.parent.unlink()


@pytest.mark.parametrize(
    ("sabotage", "words"),
    [
        (remove, "program cannot be run (No such file or directory); name another"),
        (forbid, "program cannot be run (Permission denied); name another"),
        (corrupt, "program cannot be run (Exec format error); name another"),
        (block_log, "log/unit.log cannot be written (Is a directory); a folder has this name"),
        (block_log_folder, "log cannot be written (File exists); a file has the name of a folder"),
    ],
)
async def test_an_impossible_restart_is_reported_and_retried_until_it_succeeds(
    tmp_path: Path,
    program: Path,
    children: ChildProcesses,
    reported: list[tuple[str, str]],
    sabotage: Callable[[Path, Path], None],
    words: str,
) -> None:
    log = tmp_path / "log" / "unit.log"
    await children.start(ProcessSpec("unit", (str(program),), log, fix="name another"))
    assert children.state("unit").phase == "running"
    await runs(log)
    sabotage(program, log)
    kill(children)
    await until(lambda: len(reported) >= 3)
    state = children.state("unit")
    assert (state.phase, state.pid, state.restarts, state.exit_code) == ("restarting", None, 0, -signal.SIGKILL)
    assert words in state.error
    assert {name for name, _ in reported} == {"unit"}
    assert all(words in reason for _, reason in reported)
    assert reported[-1][1].endswith("; the next attempt is in 0.05 s"), "the delay grows up to the limit"
    restore(program, log)
    await until(lambda: children.state("unit").phase == "running")
    assert (children.state("unit").restarts, children.state("unit").error) == (1, "")
    kill(children)
    await until(lambda: children.state("unit").restarts == 2)


@pytest.mark.parametrize(
    ("argv", "error", "words"),
    [
        (("/nowhere/program",), StartError, "cannot be run (No such file or directory); run `make up`"),
        (("/bin/sleep", "a\0b"), StartError, "/bin/sleep cannot be run (embedded null byte)"),
        (("/bin/true", "x" * 3_000_000), StartError, "(Argument list too long); shorten its arguments"),
    ],
)
async def test_an_impossible_first_start_is_an_error(
    tmp_path: Path, children: ChildProcesses, argv: tuple[str, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        await children.start(ProcessSpec("unit", argv, tmp_path / "log"))
    assert words in str(caught.value)


async def test_an_unwritable_log_is_not_reported_as_a_missing_program(tmp_path: Path, program: Path) -> None:
    (tmp_path / "log").write_text("a file")
    with pytest.raises(StoreError, match=r"log cannot be written \(File exists\)"):
        await ChildProcesses().start(ProcessSpec("unit", (str(program),), tmp_path / "log" / "unit.log"))


async def test_an_engine_on_demand_with_an_unwritable_log_did_not_start(tmp_path: Path) -> None:
    site = Site.model_validate_json(json.dumps(a_site(8000, 8101, tmp_path)))
    (tmp_path / "log").write_text("a file")
    control = ChildControl(site, tmp_path, tmp_path / "log")
    with pytest.raises(StartError, match=r"log cannot be written \(File exists\)"):
        await control.start("chat")
    assert not await control.alive("chat")
    await control.close()


async def test_exits_and_failed_restarts_are_logged_by_default(
    tmp_path: Path, program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    children = ChildProcesses()
    await children.start(ProcessSpec("unit", (str(program),), tmp_path / "log"))
    await runs(tmp_path / "log")
    remove(program, tmp_path / "log")
    with caplog.at_level(logging.WARNING):
        kill(children)
        await until(lambda: "unit cannot be restarted" in caplog.text)
    await children.stop_all()
    assert "unit ended with code -9 and is restarted" in caplog.text
    assert children.state("unit").phase == "stopped"


async def test_a_keeper_that_fails_itself_is_reported(
    tmp_path: Path, program: Path, reported: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    def failing(name: str, code: int) -> None:
        raise LookupError(name)

    children = ChildProcesses(failing, lambda name, reason: reported.append((name, reason)))
    await children.start(ProcessSpec("unit", (str(program),), tmp_path / "log"))
    kill(children)
    await until(lambda: bool(reported))
    assert children.state("unit").phase == "failed"
    assert "LookupError('unit')" in children.state("unit").error
    assert "does not restart it any more" in reported[0][1]
    assert "the supervisor failed" in caplog.text
    await children.stop_all()
