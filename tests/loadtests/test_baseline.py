"""The comparison with an earlier run."""

from __future__ import annotations

import random

from appliance.contract.model import Slo
from loadtests.baseline import above, compare, differences
from loadtests.estimates import Interval
from loadtests.report import MISSED, PASS, Report
from tests.loadtests.samples import a_sample, report_on


def run_of(ttft: float, count: int = 200, seed: int = 1) -> Report:
    rng = random.Random(seed)
    return report_on(*(a_sample(ttft * rng.uniform(0.9, 1.1), at=float(i)) for i in range(count)), slo=Slo())


def test_a_measure_is_worse_only_if_the_intervals_are_apart() -> None:
    before = run_of(0.5)
    same, worse, better = run_of(0.5, seed=2), run_of(0.8), run_of(0.3)
    assert {c.verdict for c in compare(before, same)} == {"same"}
    assert "TTFT p50" in [c.measure for c in compare(before, worse) if c.verdict == "worse"]
    assert "TTFT p50" in [c.measure for c in compare(before, better) if c.verdict == "better"]
    few = run_of(0.5, count=3)
    assert {c.verdict for c in compare(few, worse) if c.measure == "TTFT p95"} == {"same"}, (
        "too few samples for a verdict"
    )
    assert worse.exit_code == PASS
    worse.baseline = compare(before, worse)
    assert worse.exit_code == MISSED


def test_more_errors_are_worse_and_more_goodput_is_better() -> None:
    before = report_on(*(a_sample(at=float(i)) for i in range(100)), slo=Slo(error_rate=1))
    now = report_on(
        *(a_sample(cause="503" if i % 3 else "", at=float(i)) for i in range(100)), slo=Slo(error_rate=1)
    )
    verdicts = {c.measure: c.verdict for c in compare(before, now)}
    assert (verdicts["error share"], verdicts["good share"], verdicts["goodput"]) == ("worse", "worse", "worse")
    verdicts = {c.measure: c.verdict for c in compare(now, before)}
    assert (verdicts["error share"], verdicts["good share"]) == ("better", "better")


def test_intervals_without_a_bound_are_never_apart() -> None:
    assert above(Interval(5, 4, 6), Interval(2, 1, 3))
    assert not above(Interval(5, None, 6), Interval(2, 1, 3))
    assert not above(Interval(5, 4, 6), Interval(2, 1, None))


def test_only_the_same_load_is_compared() -> None:
    report = run_of(0.5, count=20)
    parameters = dict(report.parameters)
    assert differences(report, "chat", parameters) == []
    assert differences(report, "chat", parameters | {"timeout_s": 5}) == []
    assert differences(report, "rag", parameters) == ["it ran scenario 'chat', not 'rag'"]
    assert differences(report, "chat", parameters | {"users": 99}) == ["its users was 8, not 99"]
