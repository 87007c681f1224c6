"""The order of a run: obstacles stop a cell, limits end a run, and a later run continues."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from appliance.bench.grid import BenchCell
from appliance.bench.guard import GuardLook, GuardRules
from appliance.bench.results import ResultFile
from appliance.bench.run import ATTEMPTS, BenchLimits, BenchParts, GridRun
from appliance.errors import StartError, StoreError
from appliance.system.stopping import Stop, Stopped
from loadtests.report import Report, Tokens
from tests.bench.test_results import CONDITIONS
from tests.conftest import wait_until

CELLS = [BenchCell("load", batch=batch, input=100) for batch in (1, 2, 4)]
QUICK = BenchLimits(run_s=60, cell_s=60, wait_s=30, quiet_s=0, look_s=0.01)


def a_report(rate: float = 100.0) -> Report:
    tokens = Tokens(prompt=1600, completion=800)
    return Report(
        requests=16,
        failures={},
        checks=(),
        percentiles={"TTFT": {"p50": 20.0}, "TPOT": {"p50": 9.0}, "E2E": {"p50": 500.0}},
        output_tokens_per_s=rate,
        duration_s=8.0,
        tokens=tokens,
    )


class ScriptedHost:
    """A host whose looks a test sets."""

    def __init__(self) -> None:
        self.now = GuardLook(minute=0)
        self.looks = 0
        self.on_look: Callable[[], None] = lambda: None

    def look(self, ours: int) -> GuardLook:
        self.looks += 1
        self.on_look()
        return self.now


class Bench:
    """A run with the load of a test."""

    def __init__(self, path: Path, limits: BenchLimits = QUICK) -> None:
        self.host = ScriptedHost()
        self.path = path / "results.jsonl"
        self.limits = limits
        self.stop = Stop()
        self.lines: list[str] = []
        self.loaded: list[int] = []
        self.set: list[int | None] = []
        self.load: Callable[[BenchCell, Stop], Report] = lambda _cell, _stop: a_report()
        self.swap: Callable[[str, Stop], dict[str, float]] = lambda _model, _stop: {"unload": 1.0, "load": 2.0}
        self.start: Callable[[str, Stop], dict[str, float]] = lambda _model, _stop: {"first_token": 30.0}
        self.rules = GuardRules()

    def run(self, cells: list[BenchCell] | None = None) -> str:
        def load(cell: BenchCell, folder: Path, stop: Stop) -> Report:
            assert folder.is_dir()
            self.loaded.append(cell.batch)
            return self.load(cell, stop)

        parts = BenchParts(
            host=self.host,
            load=load,
            swap=self.swap,
            start=self.start,
            limit=lambda watts, _stop: self.set.append(watts),
            limit_w=lambda: 450.0,
            report=self.lines.append,
        )
        results = ResultFile.open(self.path, CONDITIONS)
        return GridRun(results, parts, rules=self.rules, limits=self.limits, stop=self.stop).run(cells or CELLS)

    @property
    def outcomes(self) -> list[tuple[int, str, str]]:
        found = ResultFile.read(self.path).results
        return [(one.cell.batch, one.outcome, one.reason) for one in found]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_each_cell_is_measured_once_and_a_second_run_has_nothing_to_do(bench: Bench) -> None:
    assert bench.run() == ""
    assert bench.loaded == [1, 2, 4]
    assert [outcome for _, outcome, _ in bench.outcomes] == ["measured"] * 3
    assert bench.run() == ""
    assert bench.loaded == [1, 2, 4]
    figures = ResultFile.read(bench.path).results[0].figures
    assert (figures.rate, figures.ttft_ms, figures.tpot_ms, figures.limit_w) == (100.0, 20.0, 9.0, 450.0)
    assert (figures.input, figures.output, figures.concurrency) == (100.0, 50.0, 1.0)
    assert figures.joules_per_token is None


def test_a_changed_grid_measures_what_is_new(bench: Bench) -> None:
    assert bench.run(CELLS[:1]) == ""
    assert bench.run([CELLS[2], CELLS[0]]) == ""
    assert bench.loaded == [1, 4]


def test_load_of_users_stops_the_cell_which_is_measured_again_when_they_are_quiet(bench: Bench) -> None:
    def load(_cell: BenchCell, stop: Stop) -> Report:
        if len(bench.loaded) == 1:
            bench.host.now = GuardLook(minute=0, others=5)
            assert stop.wait(30)
            bench.host.now = GuardLook(minute=0)
        return a_report()

    bench.load = load
    assert bench.run() == ""
    assert bench.loaded == [1, 1, 2, 4]
    assert [batch for batch, _, _ in bench.outcomes] == [1, 2, 4]
    assert any("stopped load: 1 x 100 tokens: users have 5 requests" in line for line in bench.lines)


def test_a_hot_card_ends_the_run_after_the_wait_and_names_the_heat(tmp_path: Path) -> None:
    bench = Bench(tmp_path, BenchLimits(run_s=60, cell_s=60, wait_s=0.05, quiet_s=0, look_s=0.01))
    bench.host.now = GuardLook(minute=0, temperature_c=91.0)
    assert bench.run() == "a card has 91 °C, the limit is 83"
    assert bench.loaded == []


def test_a_cell_that_is_stopped_again_and_again_ends_the_run(bench: Bench) -> None:
    def load(_cell: BenchCell, stop: Stop) -> Report:
        bench.host.now = GuardLook(minute=0, on_battery=True)
        assert stop.wait(30)
        bench.host.now = GuardLook(minute=0)
        return a_report()

    bench.load = load
    reason = bench.run()
    assert reason.startswith(f"load: 1 x 100 tokens was stopped {ATTEMPTS} times")
    assert bench.outcomes == []


def test_the_limit_of_the_run_ends_it_and_a_later_run_continues(tmp_path: Path) -> None:
    bench = Bench(tmp_path, BenchLimits(run_s=0.3, cell_s=60, wait_s=60, quiet_s=0, look_s=0.01))

    def load(cell: BenchCell, stop: Stop) -> Report:
        if cell.batch == 2 and bench.limits.run_s < 1:
            assert stop.wait(30)
        return a_report()

    bench.load = load
    bench.limits = BenchLimits(run_s=0.9, cell_s=60, wait_s=60, quiet_s=0, look_s=0.01)
    assert bench.run() == "the limit of 1 s is reached"
    assert 2 not in [batch for batch, _, _ in bench.outcomes]
    bench.limits = QUICK
    assert bench.run() == ""
    assert sorted(batch for batch, _, _ in bench.outcomes) == [1, 2, 4]


def test_a_slow_cell_is_a_failure_and_the_next_one_follows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, BenchLimits(run_s=60, cell_s=0.3, wait_s=60, quiet_s=0, look_s=0.01))

    def load(cell: BenchCell, stop: Stop) -> Report:
        if cell.batch == 2:
            assert stop.wait(30)
        return a_report()

    bench.load = load
    assert bench.run(CELLS[1:2]) == ""
    assert bench.outcomes == [(2, "failed", "it is not complete within 0 s")]


def test_a_signal_ends_the_load_and_the_run(bench: Bench) -> None:
    def load(_cell: BenchCell, stop: Stop) -> Report:
        threading.Thread(target=bench.stop.request, args=("SIGTERM",)).start()
        assert stop.wait(30)
        return a_report()

    bench.load = load
    assert bench.run() == "SIGTERM ended the run"
    assert bench.outcomes == []


def test_failed_requests_make_a_failed_cell(bench: Bench) -> None:
    def load(cell: BenchCell, _stop: Stop) -> Report:
        report = a_report()
        if cell.batch == 2:
            report.failures = {"503": 3}
        if cell.batch == 4:
            report.invalid = ("the client's lag p95 is 300 ms",)
        return report

    bench.load = load
    assert bench.run() == ""
    assert bench.outcomes[1:] == [
        (2, "failed", "3 of 16 requests failed: 503"),
        (4, "failed", "the client's lag p95 is 300 ms"),
    ]


def test_a_swap_that_fails_is_a_failed_cell(bench: Bench) -> None:
    def swap(model: str, _stop: Stop) -> dict[str, float]:
        if model == "b":
            raise StartError("b was not loaded: out of memory")
        return {"unload": 0.5, "load": 3.0}

    bench.swap = swap
    assert bench.run([BenchCell("swap", model="a"), BenchCell("swap", model="b")]) == ""
    found = ResultFile.read(bench.path).results
    assert found[0].figures.stages == {"unload": 0.5, "load": 3.0}
    assert (found[1].outcome, found[1].reason) == ("failed", "b was not loaded: out of memory")


def test_a_cold_start_has_its_stages_and_a_limit_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, BenchLimits(run_s=60, cell_s=0, start_s=60, wait_s=60, quiet_s=0, look_s=0.01))
    looks: list[int] = []

    def start(_model: str, stop: Stop) -> dict[str, float]:
        # Longer than a cell of a load may take: a few looks of the guard.
        first = bench.host.looks
        wait_until(lambda: bench.host.looks > first + 3, "the guard looks", 30)
        looks.append(bench.host.looks - first)
        assert not stop.requested
        return {"weights": 4.0, "first_token": 30.0}

    bench.start = start
    assert bench.run([BenchCell("cold", model="a")]) == ""
    (found,) = ResultFile.read(bench.path).results
    assert (found.outcome, found.figures.stages) == ("measured", {"weights": 4.0, "first_token": 30.0})
    assert bench.lines[-1] == "cold start of a: weights 4.00 s, first_token 30.00 s; 0 left"
    assert looks


@pytest.mark.parametrize("kind", ["cold", "swap"])
def test_every_request_of_a_user_stops_a_cell_that_takes_a_model_away(
    bench: Bench, kind: Literal["cold", "swap"]
) -> None:
    """Loads leave 8 sequences to users here; a cell without a load leaves none."""
    bench.rules = GuardRules(users=8)
    calls: list[str] = []

    def start(model: str, stop: Stop) -> dict[str, float]:
        calls.append(model)
        if len(calls) == 1:
            bench.host.now = GuardLook(minute=0, others=1)
            assert stop.wait(30)
            bench.host.now = GuardLook(minute=0)
            raise Stopped(stop.reason)
        return {"first_token": 1.0}

    bench.start = bench.swap = start
    assert bench.run([BenchCell(kind, model="a")]) == ""
    assert calls == ["a", "a"]
    assert [outcome for _, outcome, _ in bench.outcomes] == ["measured"]
    bench.host.now = GuardLook(minute=0, others=1)
    assert bench.run(CELLS[:1]) == ""


def test_a_result_that_cannot_be_written_ends_the_run(bench: Bench) -> None:
    def load(_cell: BenchCell, _stop: Stop) -> Report:
        bench.path.unlink()
        bench.path.mkdir()
        return a_report()

    bench.load = load
    with pytest.raises(StoreError, match=r"results\.jsonl"):
        bench.run()
