"""A child process that cannot stop its parent."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.system import bounded_child
from appliance.system.bounded_child import NOT_STARTED, BoundedChild, ChildResult
from tests.conftest import wait_until

STUBBORN = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


@pytest.fixture
def child() -> Iterator[BoundedChild]:
    one = BoundedChild()
    yield one
    one.cancel()
    one.wait(5)


def finished(child: BoundedChild) -> ChildResult:
    result = child.wait(30)
    assert result is not None
    return result


def test_the_output_and_the_exit_code_are_its_result(child: BoundedChild) -> None:
    assert child.start(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=30)
    assert finished(child) == ChildResult(3, "out\nerr\n")
    assert child.poll() is None


def test_a_large_output_does_not_block_the_child(child: BoundedChild) -> None:
    child.start([sys.executable, "-c", "print('x' * 2_000_000)"], timeout_s=30)
    result = finished(child)
    assert result.ok
    assert len(result.output) == bounded_child.MAX_OUTPUT


def test_a_second_child_is_refused_until_the_result_of_the_first_is_taken(child: BoundedChild) -> None:
    assert child.start(["sh", "-c", "exit 0"], timeout_s=30)
    assert not child.start(["sh", "-c", "exit 0"], timeout_s=30)
    finished(child)
    assert child.start(["sh", "-c", "exit 0"], timeout_s=30)


@pytest.mark.parametrize("argv", [["/no/such/program"], [str(Path(__file__))]])
def test_a_program_that_cannot_be_started_has_a_result(argv: list[str], child: BoundedChild) -> None:
    assert child.start(argv, timeout_s=1)
    result = child.poll()
    assert result is not None
    assert result.code == NOT_STARTED
    assert not child.busy


def test_a_child_is_terminated_at_its_deadline(child: BoundedChild) -> None:
    child.start(["sleep", "600"], timeout_s=0.1)
    assert finished(child) == ChildResult(-signal.SIGTERM, "", timed_out=True)


def test_a_child_that_ignores_sigterm_is_killed(child: BoundedChild) -> None:
    child.start([sys.executable, "-c", STUBBORN], timeout_s=5)
    result = finished(child)
    assert result == ChildResult(-signal.SIGKILL, "up\n", timed_out=True)


def test_programs_of_the_child_end_with_it(child: BoundedChild, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child.start(["sh", "-c", f"sleep 600 & echo $! > {note}.new; mv {note}.new {note}; wait"], timeout_s=3)
    wait_until(note.exists, "the grandchild")
    assert finished(child).timed_out
    stat = Path(f"/proc/{int(note.read_text())}/stat")
    wait_until(lambda: not stat.exists() or stat.read_text().split()[2] == "Z", "the end of the grandchild")


def test_a_child_that_survives_sigkill_hangs_and_is_left(
    child: BoundedChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signals that do not arrive stand for the D state."""
    monkeypatch.setattr(os, "killpg", lambda pid, number: None)
    child.start(["sleep", "600"], timeout_s=0.1)

    def hangs() -> bool:
        began = time.monotonic()
        assert child.poll() is None
        assert time.monotonic() - began < 1
        return child.hanging

    assert wait_until(hangs, "the hang") >= 2 * bounded_child.KILL_AFTER_S - 0.1
    assert not child.start(["true"], timeout_s=1)
    monkeypatch.undo()
    child.cancel()
    assert finished(child).timed_out
    assert not child.hanging
