"""Compares a run with an earlier one. Pure: a measure is worse only if the 95 % intervals do not overlap."""

from __future__ import annotations

from typing import Any

from loadtests.estimates import Interval
from loadtests.report import Comparison, Report

LESS_IS_BETTER = (
    "TTFT p50",
    "TTFT p95",
    "TPOT p50",
    "TPOT p95",
    "E2E p50",
    "E2E p95",
    "max ITL p95",
    "error share",
)
MORE_IS_BETTER = ("good share", "goodput", "output tokens/s")

IGNORED = frozenset({"timeout_s", "stall_s", "max_in_flight", "warmup_s"})
"""Parameters that can differ: they do not change the requests."""


def differences(before: Report, now_scenario: str, now_parameters: dict[str, Any]) -> list[str]:
    """Return why two runs are not comparable: a clause per difference of the load."""
    if before.scenario != now_scenario:
        return [f"it ran scenario {before.scenario!r}, not {now_scenario!r}"]
    return [
        f"its {name} was {before.parameters.get(name)}, not {value}"
        for name, value in now_parameters.items()
        if name not in IGNORED and before.parameters.get(name) != value
    ]


def compare(before: Report, now: Report) -> list[Comparison]:
    """Compare every measure of which both runs have an interval."""
    found = []
    for measure in (*LESS_IS_BETTER, *MORE_IS_BETTER):
        one, other = before.intervals.get(measure), now.intervals.get(measure)
        if one is not None and other is not None:
            more, less = above(other, one), above(one, other)
            if measure in MORE_IS_BETTER:
                more, less = less, more
            found.append(
                Comparison(measure, one, now=other, verdict="worse" if more else "better" if less else "same")
            )
    return found


def above(one: Interval, other: Interval) -> bool:
    """Return whether ``one`` is completely above ``other``; never without a bound on that side."""
    return one.low is not None and other.high is not None and one.low > other.high
