"""The report of a benchmark as Markdown, and as one page of HTML with plots that needs no network. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from appliance.bench.results import BenchConditions, CellResult
from appliance.bench.tables import ComparedCell
from appliance.render.html import HtmlTable, render_page
from appliance.render.svg import Axes, Series, plot

TEMPLATE = Path(__file__).with_name("report.html.j2")

LOAD_HEADS = (
    "batch",
    "input",
    "limit W",
    "tok/s",
    "predicted",
    "interval",
    "inside",
    "TTFT ms",
    "TPOT ms",
    "W",
    "J/token",
    "users",
)
CONTEXT_HEADS = ("input", "TTFT ms", "TPOT ms", "tok/s", "predicted", "interval")
SWAP_HEADS = ("model", "unload s", "load and first token s")
COLD_HEADS = ("model", "unload of another s", "weights s", "compile s", "graphs s", "health s", "first token s")
COLD_STAGES = ("unloaded", "weights", "compile", "graphs", "serves", "first_token")
MISSING = "-"


def tables_of(cells: Sequence[ComparedCell], results: Sequence[CellResult]) -> dict[str, HtmlTable]:
    """Return the tables by their titles; one without rows is absent."""
    loads = [_load_row(cell) for cell in _sorted(cells, "load")]
    contexts = [_context_row(cell) for cell in _sorted(cells, "context")]
    swaps = [
        (
            one.cell.model,
            _number(one.figures.stages.get("unload"), 2),
            _number(one.figures.stages.get("load"), 2),
        )
        for one in results
        if one.cell.kind == "swap" and one.outcome == "measured"
    ]
    colds = [
        (one.cell.model, *(_number(one.figures.stages.get(stage), 2) for stage in COLD_STAGES))
        for one in results
        if one.cell.kind == "cold" and one.outcome == "measured"
    ]
    failed = [(one.cell.name, one.reason) for one in results if one.outcome == "failed"]
    found = {
        "Throughput": HtmlTable(LOAD_HEADS, loads),
        "Context and latency": HtmlTable(CONTEXT_HEADS, contexts),
        "Swaps": HtmlTable(SWAP_HEADS, swaps),
        "Cold starts": HtmlTable(COLD_HEADS, colds),
        "Failed cells": HtmlTable(("cell", "reason"), failed, left=2),
    }
    return {title: table for title, table in found.items() if table.rows}


def to_markdown(
    conditions: BenchConditions,
    cells: Sequence[ComparedCell],
    results: Sequence[CellResult],
    notes: Sequence[str] = (),
) -> str:
    """Return the report as Markdown."""
    lines = [f"# Benchmark of {conditions.model} on {conditions.host}", "", _about(conditions), ""]
    for title, table in tables_of(cells, results).items():
        lines += [f"## {title}", "", _markdown_row(table.heads), _markdown_row(["---"] * len(table.heads))]
        lines += [_markdown_row([str(one) for one in row]) for row in table.rows]
        lines.append("")
    remarks = _remarks(cells, results, notes)
    if remarks:
        lines += ["## Notes", "", *(f"- {remark}" for remark in remarks), ""]
    return "\n".join(lines)


def to_html(
    conditions: BenchConditions,
    cells: Sequence[ComparedCell],
    results: Sequence[CellResult],
    notes: Sequence[str] = (),
) -> str:
    """Return the report as a page."""
    return render_page(
        TEMPLATE,
        title=f"Benchmark of {conditions.model}",
        detail=_about(conditions),
        plots=list(_plots(cells)),
        tables=tables_of(cells, results),
        notes=_remarks(cells, results, notes),
    )


def _about(conditions: BenchConditions) -> str:
    parts = (conditions.host, f"engine {conditions.engine}", conditions.cards, conditions.driver)
    output = f"{conditions.output} tokens of output"
    return ", ".join(part for part in (*parts, output) if part)


def _sorted(cells: Sequence[ComparedCell], kind: str) -> list[ComparedCell]:
    own = [cell for cell in cells if cell.result.cell.kind == kind]
    return sorted(own, key=lambda one: (-_watts(one), one.result.cell.input, one.result.cell.batch))


def _watts(cell: ComparedCell) -> float:
    return float(cell.result.cell.power_w or cell.result.figures.limit_w or 0.0)


def _load_row(cell: ComparedCell) -> tuple[str, ...]:
    figures, prediction = cell.result.figures, cell.prediction
    known = prediction is not None and prediction.predicted is not None
    inside = MISSING if prediction is None or not known else "yes" if prediction.inside else "no"
    return (
        str(cell.result.cell.batch),
        _number(figures.input),
        _number(_watts(cell) or None),
        _number(figures.rate, 1),
        *_predicted(cell),
        inside,
        _number(figures.ttft_ms),
        _number(figures.tpot_ms, 1),
        _number(figures.power_w),
        _number(figures.joules_per_token, 2),
        str(figures.users_load),
    )


def _context_row(cell: ComparedCell) -> tuple[str, ...]:
    figures = cell.result.figures
    measured = (_number(figures.ttft_ms), _number(figures.tpot_ms, 1), _number(figures.rate, 1))
    return (_number(figures.input), *measured, *_predicted(cell))


def _predicted(cell: ComparedCell) -> tuple[str, str]:
    prediction = cell.prediction
    if prediction is None or prediction.predicted is None:
        return MISSING, MISSING
    return _number(prediction.predicted), f"{_number(prediction.low)} to {_number(prediction.high)}"


def _plots(cells: Sequence[ComparedCell]) -> Iterator[Markup]:
    axes = {
        "Throughput by batch": ("batch", "tok/s"),
        "Time per output token by batch": ("batch", "ms"),
        "Energy by batch": ("batch", "J/token"),
    }
    loads = _sorted(cells, "load")
    groups: dict[str, list[ComparedCell]] = {}
    for cell in loads:
        limit = f", {_watts(cell):.0f} W" if _watts(cell) else ""
        groups.setdefault(f"{cell.result.cell.input} tokens in{limit}", []).append(cell)
    for title, (x, y) in axes.items():
        series = [
            Series(name, [(float(one.result.cell.batch), _value(one, y)) for one in group])
            for name, group in groups.items()
        ]
        if y == "tok/s":
            series += [
                Series(
                    f"predicted: {name}",
                    [
                        (float(one.result.cell.batch), None if one.prediction is None else one.prediction.predicted)
                        for one in group
                    ],
                    dots=True,
                )
                for name, group in groups.items()
            ]
        yield plot(title, Axes(x, y), series)
    points = [(cell.result.cell.input, cell.result.figures) for cell in _sorted(cells, "context")]
    first = Series("first token", [(float(at), figures.ttft_ms) for at, figures in sorted(points, key=_first)])
    yield plot("First token by context", Axes("tokens of the prompt", "ms"), [first])


def _first(point: tuple[int, object]) -> int:
    return point[0]


def _value(cell: ComparedCell, unit: str) -> float | None:
    figures = cell.result.figures
    return {"tok/s": figures.rate, "ms": figures.tpot_ms, "J/token": figures.joules_per_token}[unit]


def _remarks(cells: Sequence[ComparedCell], results: Sequence[CellResult], notes: Sequence[str]) -> tuple[str, ...]:
    reasons = [f"not compared with the plan: {cell.reason}" for cell in cells if cell.reason]
    own = [note for result in results for note in result.notes]
    return tuple(dict.fromkeys((*notes, *reasons, *own)))


def _number(value: float | None, places: int = 0) -> str:
    return MISSING if value is None else f"{value:.{places}f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
