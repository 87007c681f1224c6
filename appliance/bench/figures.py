"""The figures of a cell, from the report of its load. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.bench.results import BenchFigures
from loadtests.report import Report

MIN_POWER_SAMPLES = 3
"""Samples of the draw of a card below which a cell is too short for its energy."""

CARDS = "cards"
"""The source of the cards in a report."""


def figures_of(report: Report, cards: Sequence[int]) -> tuple[BenchFigures, tuple[str, ...]]:
    """Return the figures of ``report`` for an engine on ``cards``, and a note for each that is missing."""
    good = report.requests - sum(report.failures.values())
    power, notes = power_of(report, cards)
    median = {name: values.get("p50") for name, values in report.percentiles.items()}
    tokens = report.tokens
    rate = report.output_tokens_per_s or None
    figures = BenchFigures(
        rate=rate,
        ttft_ms=median.get("TTFT"),
        tpot_ms=median.get("TPOT"),
        e2e_ms=median.get("E2E"),
        input=tokens.prompt / good if good else None,
        output=tokens.completion / good if good else None,
        prefix_hit=tokens.cached / tokens.prompt if tokens.prompt else 0.0,
        seconds=report.duration_s,
        power_w=power,
        joules_per_token=power / rate if power is not None and rate else None,
    )
    return figures, notes


def power_of(report: Report, cards: Sequence[int]) -> tuple[float | None, tuple[str, ...]]:
    """Return the mean draw of ``cards`` together in watts; without it None and the reason."""
    if not cards:
        return None, ()
    table = report.server.get(CARDS)
    if table is None:
        return None, ("no power: nvidia-smi reports no card",)
    during = [index for index, at in enumerate(table["at_s"]) if 0 <= at <= report.duration_s]
    total = 0.0
    for card in cards:
        series = table["series"].get(f"GPU {card} W", [])
        drawn = [value for index in during if index < len(series) and (value := series[index]) is not None]
        if len(drawn) < MIN_POWER_SAMPLES:
            return None, (f"no power: card {card} has {len(drawn)} samples, {MIN_POWER_SAMPLES} are necessary",)
        total += sum(drawn) / len(drawn)
    return total, ()


def unfit(report: Report) -> str:
    """Return why ``report`` is not a measurement; empty if it is one."""
    if report.invalid:
        return report.invalid[0]
    if report.failures:
        cause, count = max(report.failures.items(), key=lambda item: item[1])
        return f"{count} of {report.requests} requests failed: {cause}"
    return "" if report.output_tokens_per_s > 0 else "no token was generated"
