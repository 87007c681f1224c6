"""The tables of a benchmark: rows in the planner's columns, and the comparison with its predictions. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.bench.results import BenchConditions, CellResult
from appliance.contract.model import Site
from appliance.errors import UsageError
from appliance.planner.evaluate import RowResult, evaluate
from appliance.planner.load_report import ReportedLoad, row_of_site
from appliance.planner.measured import HOST
from appliance.planner.row_parser import COLUMNS, PREFIX_HIT

JOULES = "joules_per_token"
"""Our own column: the planner ignores it."""

BENCH_COLUMNS = (*COLUMNS, PREFIX_HIT, HOST, JOULES)

STAGES = ("unload", "load", "total", "unloaded", "weights", "compile", "graphs", "init", "serves", "first_token")
"""Stages of a swap, then those of a cold start."""
START_COLUMNS = ("kind", "model", "host", "cards", "driver", *(f"{stage}_s" for stage in STAGES))


@dataclass(frozen=True, slots=True)
class ComparedCell:
    """One measured load with its row and the planner's prediction, or the reason without one."""

    result: CellResult
    row: dict[str, str] | None
    prediction: RowResult | None
    reason: str = ""


def compared(results: Sequence[CellResult], site: Site, model: str) -> list[ComparedCell]:
    """Return the measured loads of ``results``, each with its row and its prediction."""
    found = []
    for result in results:
        if not result.cell.is_load or result.outcome != "measured":
            continue
        row, reason = row_of(result, site, model)
        prediction = evaluate([row])[0] if row is not None else None
        if prediction is not None and prediction.refused:
            reason = prediction.refused
        found.append(ComparedCell(result, row, prediction, reason))
    return found


def row_of(result: CellResult, site: Site, model: str) -> tuple[dict[str, str] | None, str]:
    """Return ``result`` in :data:`BENCH_COLUMNS`; None and the reason if it is not a measurement of a card."""
    figures = result.figures
    if figures.users_load:
        return None, f"users had {figures.users_load} requests running in the meantime"
    if figures.rate is None or figures.input is None or figures.output is None:
        return None, "a rate or a length is missing"
    load = ReportedLoad(
        model=model,
        rate=figures.rate,
        input=figures.input,
        output=figures.output,
        concurrency=float(result.cell.batch),
        prefix_hit=figures.prefix_hit,
    )
    try:
        row = dict(row_of_site(load, site))
    except UsageError as error:
        return None, str(error)
    limit = figures.limit_w if figures.limit_w is not None else result.cell.power_w
    row |= {
        "power_limit_w": row["power_limit_w"] if limit is None else f"{limit:g}",
        "ttft_ms": _text(figures.ttft_ms),
        "tpot_ms": _text(figures.tpot_ms),
        JOULES: _text(figures.joules_per_token),
    }
    return row, ""


def to_csv(cells: Sequence[ComparedCell]) -> str:
    """Return the rows as CSV, which ``appliance plan --measured`` reads."""
    text = io.StringIO()
    writer = csv.DictWriter(text, BENCH_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(cell.row for cell in cells if cell.row is not None)
    return text.getvalue()


def starts_csv(conditions: BenchConditions, results: Sequence[CellResult]) -> str:
    """Return the measured swaps and cold starts as CSV, in seconds."""
    text = io.StringIO()
    writer = csv.DictWriter(text, START_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for result in results:
        if result.cell.is_load or result.outcome != "measured":
            continue
        stages = {f"{name}_s": f"{seconds:.3f}" for name, seconds in result.figures.stages.items()}
        where = {"host": conditions.host, "cards": conditions.cards, "driver": conditions.driver}
        writer.writerow({"kind": result.cell.kind, "model": result.cell.model, **where, **stages})
    return text.getvalue()


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
