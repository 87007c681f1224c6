"""A supervisor of child processes, for `make up` and for engines that the gateway starts itself.

Each child leads a process group of its own, so that an engine's workers are stopped with it. The kernel ends the
child if the supervisor dies (PR_SET_PDEATHSIG), so that nothing is left running even then.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from appliance.errors import StartError, StoreError
from appliance.system import files

LOG = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process receives when its parent dies; it survives execve(2)."""

FIRST_DELAY_S = 0.5
LAST_DELAY_S = 30.0
"""Seconds before a restart: the first delay, doubled after each failure, up to the last."""

HEALTHY_S = 60.0
"""Seconds after which a process counts as healthy: the delay starts over."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to keep running: its command, its log, the seconds it may take to stop.

    ``environment`` is added to this process's own. ``fix`` is what to suggest if its program cannot be run.
    """

    name: str
    argv: tuple[str, ...]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    stop_timeout_s: float = 10.0
    fix: str = ""


@dataclass(frozen=True, slots=True)
class UnitState:
    """State of one unit.

    ``phase`` is ``failed`` if the supervisor cannot restart it any more. ``restarts`` counts the restarts that
    succeeded. ``error`` is the reason why the last restart failed, empty if it succeeded.
    """

    phase: Literal["running", "restarting", "stopped", "failed"]
    pid: int | None
    restarts: int
    exit_code: int | None
    error: str = ""


@dataclass(slots=True)
class _Child:
    unit: ProcessSpec
    process: asyncio.subprocess.Process
    keeper: asyncio.Task[None] | None = None
    restarts: int = 0
    exit_code: int | None = None
    stopping: bool = False
    error: str = ""


class ChildProcesses:
    """Keeps units running as children of this process: a unit that ends by itself is restarted.

    ``on_exit`` is called with the name and the exit code of each unit that ended by itself. ``on_error`` is called
    with the name of each unit that could not be restarted, and with the reason and the delay of the next attempt.
    Both are logged by default.
    """

    def __init__(
        self,
        on_exit: Callable[[str, int], None] | None = None,
        on_error: Callable[[str, str], None] | None = None,
    ) -> None:
        self._children: dict[str, _Child] = {}
        self._on_exit = on_exit or _log_exit
        self._on_error = on_error or _log_error

    async def start(self, unit: ProcessSpec) -> None:
        """Run ``unit`` and restart it whenever it ends by itself.

        Raises :class:`StartError` if its program cannot be run and :class:`StoreError` if its log cannot be
        written.
        """
        child = _Child(unit, await _spawn(unit.argv, unit.log, unit.environment, fix=unit.fix))
        self._children[unit.name] = child
        child.keeper = asyncio.create_task(self._keep(child))
        child.keeper.add_done_callback(lambda keeper: self._kept(child, keeper))

    async def stop(self, name: str) -> None:
        """Stop a unit and all it started: SIGTERM to its process group, then SIGKILL after ``stop_timeout_s``."""
        child = self._children[name]
        child.stopping = True
        if child.keeper is not None:
            # First of all, so that the unit is not restarted meanwhile.
            child.keeper.cancel()
            await asyncio.gather(child.keeper, return_exceptions=True)
        child.exit_code = await _end_group(child.process, child.unit.stop_timeout_s)

    async def stop_all(self) -> None:
        """Stop every unit, in the reverse order of their starts."""
        for name in reversed([*self._children]):
            await self.stop(name)

    def kill_all(self) -> None:
        """Kill every unit with all it started, at once; :meth:`stop_all` then has nothing to wait for."""
        for child in self._children.values():
            _signal_group(child.process.pid, signal.SIGKILL)

    def state(self, name: str) -> UnitState:
        """Return the state of a unit."""
        child = self._children[name]
        alive = child.process.returncode is None
        kept = child.keeper is not None and not child.keeper.done()
        return UnitState(
            phase="running" if alive else "stopped" if child.stopping else "restarting" if kept else "failed",
            pid=child.process.pid if alive else None,
            restarts=child.restarts,
            exit_code=child.exit_code,
            error=child.error,
        )

    async def _keep(self, child: _Child) -> None:
        delay = FIRST_DELAY_S
        while True:
            process = child.process
            began = time.monotonic()
            child.exit_code = await process.wait()
            _signal_group(process.pid, signal.SIGKILL)
            self._on_exit(child.unit.name, child.exit_code)
            delay = FIRST_DELAY_S if time.monotonic() - began > HEALTHY_S else min(delay * 2, LAST_DELAY_S)
            await asyncio.sleep(delay)
            while not await self._restarted(child, following := min(delay * 2, LAST_DELAY_S)):
                delay = following
                await asyncio.sleep(delay)

    async def _restarted(self, child: _Child, next_s: float) -> bool:
        """Restart the unit; if that is impossible now, report the reason and the next attempt in ``next_s``."""
        unit = child.unit
        try:
            child.process = await _spawn(unit.argv, unit.log, unit.environment, fix=unit.fix)
        except (StartError, StoreError) as error:
            child.error = str(error)
            self._on_error(unit.name, f"{error}; the next attempt is in {next_s:g} s")
            return False
        child.restarts += 1
        child.error = ""
        return True

    def _kept(self, child: _Child, keeper: asyncio.Task[None]) -> None:
        """Report a keeper that failed itself: its unit is not restarted any more."""
        if keeper.cancelled() or (error := keeper.exception()) is None:
            return
        child.error = f"the supervisor failed ({error!r}) and does not restart it any more; restart the service"
        LOG.error("%s: the supervisor failed", child.unit.name, exc_info=error)
        self._on_error(child.unit.name, child.error)


def _log_exit(name: str, code: int) -> None:
    LOG.warning("%s ended with code %d and is restarted", name, code)


def _log_error(name: str, reason: str) -> None:
    LOG.error("%s cannot be restarted: %s", name, reason)


async def _spawn(
    argv: Sequence[str], log: Path, environment: dict[str, str], *, session: bool = True, fix: str = ""
) -> asyncio.subprocess.Process:
    """Start a child that leads its own process group, writes to ``log`` and does not outlive this process.

    With ``session`` it leads a session as well; the kernel gives each session a share of the processor of its own.
    Raises :class:`StartError` if it cannot be run and :class:`StoreError` if ``log`` cannot be written.
    """
    fix = fix or FIX
    own: dict[str, Any] = {"start_new_session": True} if session else {"process_group": 0}
    with files.open_log(log) as output:
        try:
            return await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
                preexec_fn=die_with_parent,
                **own,
            )
        except OSError as error:
            message = f"{argv[0]} cannot be run ({error.strerror})"
            raise StartError(f"{message}; {_FIXES.get(error.errno or 0, fix)}") from error
        except (ValueError, subprocess.SubprocessError) as error:
            raise StartError(f"{argv[0]} cannot be run ({error}); {fix}") from error


FIX = "run `make up`, which sets up what is missing"
"""The fix for a missing program."""

_FIXES = {
    errno.EAGAIN: "too many processes run: raise `ulimit -u`, or end some",
    errno.ENOMEM: "free some memory",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine: raise fs.file-max",
    errno.E2BIG: "shorten its arguments or its environment",
}
"""The fix for other errors of fork(2) and execve(2)."""


async def run_step(argv: Sequence[str], *, log: Path, environment: dict[str, str] | None = None) -> int:
    """Run one command to its end and return its exit code; cancelled, end it with all it started."""
    # Without a session of its own, which would get a small share of the processor while an engine is busy. A load
    # generator that is scheduled late measures latencies that are not the engine's.
    process = await _spawn(argv, log, environment or {}, session=False)
    try:
        return await process.wait()
    finally:
        await _end_group(process, 5.0)


async def _end_group(process: asyncio.subprocess.Process, timeout_s: float) -> int:
    """End a process and the group it leads, also if cancelled; return its exit code."""
    try:
        if process.returncode is None:
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await process.wait()
    finally:
        # After an orderly exit as well: workers may have outlived their leader.
        _signal_group(process.pid, signal.SIGKILL)
    return await process.wait()


_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Request a signal at the death of the parent; runs in the child, between fork(2) and execve(2)."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
