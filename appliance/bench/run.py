"""Runs the cells of a grid one after the other, while the guard allows it.

| state | event | effect |
|---|---|---|
| waiting | no obstacle for ``quiet_s`` | measure the next cell |
| waiting | an obstacle for ``wait_s`` | end, and name the obstacle |
| measuring | the cell is complete | append its result; wait |
| measuring | an obstacle | stop the load; wait, and measure the cell again, ``ATTEMPTS`` times at most |
| measuring | the cell exceeds ``cell_s`` | append a failure; wait |
| any | a signal, or the limit of the run | stop the load and end; a later run continues |

A swap and a cold start take a model away. For them every request of a user is an obstacle, whatever the rules
allow. A cold start may last ``start_s`` instead of ``cell_s``.
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from appliance.bench.figures import figures_of, unfit
from appliance.bench.grid import BenchCell
from appliance.bench.guard import GuardLook, GuardRules, GuardState, watch
from appliance.bench.results import BenchFigures, CellResult, ResultFile
from appliance.errors import ApplianceError, StoreError
from appliance.system.stopping import Stop, Stopped
from loadtests.report import Report

ATTEMPTS = 5
SLOW = "it is not complete within"


class LookingHost(Protocol):
    """The host as the run sees it; :class:`~appliance.bench.host.BenchHost` is one."""

    def look(self, ours: int) -> GuardLook:
        """Return a look while ``ours`` requests of the benchmark run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLimits:
    """Seconds of the run, of a cell, of the wait for the end of an obstacle, of the calm before a cell."""

    run_s: float = 3600.0
    cell_s: float = 180.0
    start_s: float = 900.0
    """Limit of a cold start."""
    wait_s: float = 600.0
    quiet_s: float = 10.0
    look_s: float = 1.0

    def of(self, cell: BenchCell) -> float:
        """Return the limit of ``cell``."""
        return self.start_s if cell.kind == "cold" else self.cell_s


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchParts:
    """The effects of a run.

    ``load`` runs the load of a cell. ``swap`` loads a model, ``start`` starts the engine of a model anew; both
    return the seconds of the stages. ``limit`` sets the power limit of the cell, ``limit_w`` reads it. ``report``
    prints a line.
    """

    host: LookingHost
    load: Callable[[BenchCell, Path, Stop], Report]
    swap: Callable[[str, Stop], dict[str, float]]
    start: Callable[[str, Stop], dict[str, float]]
    limit: Callable[[int | None, Stop], None]
    limit_w: Callable[[], float | None]
    cards: Sequence[int] = ()
    report: Callable[[str], None] = print


@dataclass(slots=True)
class _Guarded:
    """The looks of the guard during one cell."""

    obstacle: str = ""
    slow: bool = False
    late: bool = False
    others: int = 0
    done: threading.Event = field(default_factory=threading.Event)


class GridRun:
    """One run over the cells that ``results`` lacks. :meth:`run` returns why it ended early, or an empty string."""

    def __init__(
        self, results: ResultFile, parts: BenchParts, *, rules: GuardRules, limits: BenchLimits, stop: Stop
    ) -> None:
        self._results = results
        self._parts = parts
        self._rules = rules
        self._limits = limits
        self._stop = stop
        self._deadline = time.monotonic() + limits.run_s
        self._guard = GuardState()

    def run(self, cells: Sequence[BenchCell]) -> str:
        """Measure each of ``cells`` once. Raises :class:`StoreError` if a result cannot be written."""
        left = [cell for cell in cells if cell not in self._results.done]
        attempts: dict[BenchCell, int] = {}
        while left:
            cell = left[0]
            rules = self._rules if cell.is_load else dataclasses.replace(self._rules, users=0)
            reason = self._wait(rules)
            if reason:
                return reason
            result = self._measured(cell, rules)
            if result is not None:
                self._results.append(result)
                self._parts.report(_line(result, len(left) - 1))
                left.pop(0)
                continue
            if self._stop.requested or time.monotonic() >= self._deadline:
                continue
            attempts[cell] = attempts.get(cell, 0) + 1
            if attempts[cell] >= ATTEMPTS:
                return f"{cell.name} was stopped {ATTEMPTS} times: {self._guard.reason}"
        return ""

    def _wait(self, rules: GuardRules) -> str:
        """Wait for a calm host; return why the run ends, empty if the host is calm."""
        limits = self._limits
        until = time.monotonic() + limits.wait_s
        calm_since: float | None = None
        shown = ""
        while True:
            if self._stop.requested:
                return f"{self._stop.reason} ended the run"
            if time.monotonic() >= self._deadline:
                return f"the limit of {limits.run_s:.0f} s is reached"
            self._guard = watch(self._guard, self._parts.host.look(0), rules)
            now = time.monotonic()
            if not self._guard.reason and not self._guard.loud:
                calm_since = now if calm_since is None else calm_since
                if now - calm_since >= limits.quiet_s:
                    return ""
            else:
                calm_since = None
                if self._guard.reason and self._guard.reason != shown:
                    shown = self._guard.reason
                    self._parts.report(f"waiting: {shown}")
                if now >= until:
                    return self._guard.reason or "users send requests"
            self._stop.wait(limits.look_s)

    def _measured(self, cell: BenchCell, rules: GuardRules) -> CellResult | None:
        """Return the result of ``cell``; None if it was stopped."""
        parts = self._parts
        parts.limit(cell.power_w, self._stop)
        if self._stop.requested:
            return None
        parts.report(f"measuring {cell.name}")
        guarded, cell_stop = _Guarded(), Stop()
        thread = threading.Thread(target=self._watch_cell, args=(cell, rules, guarded, cell_stop), daemon=True)
        thread.start()
        report: Report | None = None
        stages: dict[str, float] = {}
        failure = ""
        try:
            if not cell.is_load:
                effect = parts.swap if cell.kind == "swap" else parts.start
                stages = effect(cell.model, cell_stop)
            else:
                with tempfile.TemporaryDirectory(prefix="appliance-bench-") as folder:
                    report = parts.load(cell, Path(folder), cell_stop)
        except Stopped:
            pass
        except StoreError:
            raise
        except ApplianceError as error:
            failure = str(error)
        finally:
            guarded.done.set()
            thread.join()
        if guarded.slow:
            failure = f"{SLOW} {self._limits.of(cell):.0f} s"
        elif cell_stop.requested:
            return None
        if failure:
            return CellResult(cell=cell, outcome="failed", at=time.time(), reason=failure)
        return self._result(cell, report, stages, guarded)

    def _result(
        self, cell: BenchCell, report: Report | None, stages: dict[str, float], guarded: _Guarded
    ) -> CellResult:
        if report is None:
            figures = BenchFigures(stages=stages, users_load=guarded.others)
            return CellResult(cell=cell, outcome="measured", at=time.time(), figures=figures)
        reason = unfit(report)
        if reason:
            return CellResult(cell=cell, outcome="failed", at=time.time(), reason=reason)
        figures, notes = figures_of(report, self._parts.cards)
        figures = replace(
            figures, concurrency=float(cell.batch), limit_w=self._parts.limit_w(), users_load=guarded.others
        )
        return CellResult(cell=cell, outcome="measured", at=time.time(), figures=figures, notes=notes)

    def _watch_cell(self, cell: BenchCell, rules: GuardRules, guarded: _Guarded, cell_stop: Stop) -> None:
        """Look once a second until the cell is done; stop it for an obstacle, a signal or a limit of time."""
        ours = cell.batch if cell.is_load else 0
        ends = time.monotonic() + self._limits.of(cell)
        while not guarded.done.is_set():
            look = self._parts.host.look(ours)
            if guarded.done.is_set():
                return
            self._guard = watch(self._guard, look, rules)
            guarded.others = max(guarded.others, look.others)
            now = time.monotonic()
            if self._stop.requested:
                cell_stop.request(self._stop.reason)
                return
            if self._guard.reason:
                guarded.obstacle = self._guard.reason
                self._parts.report(f"stopped {cell.name}: {guarded.obstacle}")
                cell_stop.request(guarded.obstacle)
                return
            if now >= self._deadline:
                cell_stop.request("the limit of the run")
                return
            if now >= ends:
                guarded.slow = True
                cell_stop.request("the limit of a cell")
                return
            self._pause(guarded)

    def _pause(self, guarded: _Guarded) -> None:
        """Wait for the next look, the end of the cell or a signal."""
        until = time.monotonic() + self._limits.look_s
        while time.monotonic() < until and not guarded.done.wait(min(0.1, self._limits.look_s)):
            if self._stop.requested:
                return


def _line(result: CellResult, left: int) -> str:
    figures = result.figures
    if result.outcome == "failed":
        shown = f"failed: {result.reason}"
    elif not result.cell.is_load:
        shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in figures.stages.items())
    else:
        shown = f"{figures.rate or 0.0:.1f} tok/s, TTFT {figures.ttft_ms or 0.0:.0f} ms"
    return f"{result.cell.name}: {shown}; {left} left"
