"""Held-out errors of the planner by group: a CSV, and two drawings for docs/planner.md.

Usage: ``python benchmarks/planner/errors.py``
"""

from __future__ import annotations

import csv
from collections import defaultdict
from math import exp
from pathlib import Path

from markupsafe import Markup

from appliance.catalog.shipped import MEASUREMENTS
from appliance.planner import evaluate, row_parser, throughput
from appliance.render import svg
from appliance.render.svg import Scale
from tools import calibrate

ROOT = Path(__file__).parents[2]
STYLE = Markup(
    "text{font:11px system-ui,sans-serif;fill:#4a5560}.title{font-weight:600;font-size:13px}.page{fill:#fff}"
    ".band{fill:#edf1f5}.tick{stroke:#cbd3da}.grid{stroke:#e3e7eb}.guide{stroke:#9aa5af}"
    ".factor{stroke-dasharray:4 4}.vllm{fill:#2563a8;stroke:#2563a8}.sglang{fill:#7a4fb5;stroke:#7a4fb5}"
    ".tensorrt-llm{fill:#2e8b68;stroke:#2e8b68}.llamacpp{fill:#c98a1b;stroke:#c98a1b}"
    ".cloud{fill-opacity:.7}.open{fill:none}"
)
ENGINES = ("vllm", "sglang", "tensorrt-llm", "llamacpp")


def legend(x: float, y: float) -> list[Markup]:
    parts = []
    for index, engine in enumerate(ENGINES):
        parts += [svg.circle(x + 95 * index, y - 4, 4, kind=engine), svg.text(x + 95 * index + 8, y, engine)]
    return parts


def point(x: float, y: float, sample: calibrate.CalibrationSample, kind: str = "") -> Markup:
    """Return the point of a measurement, open if conditions of it are assumed."""
    classes = (sample.workload.engine, kind, "open" if sample.workload.assumed else "")
    return svg.circle(x, y, 3.4, kind=" ".join(filter(None, classes)))


def by_group(data: list[calibrate.CalibrationSample], held: list[float]) -> str:
    """Return a drawing with a row per (model, card) and a dot per measurement at ln(predicted / true)."""
    groups: dict[tuple[str, str], list[tuple[float, calibrate.CalibrationSample]]] = defaultdict(list)
    for sample, error in zip(data, held, strict=True):
        groups[sample.group].append((error, sample))
    left, width, row, top = 430.0, 910.0, 15.0, 54.0
    height = top + row * len(groups) + 16
    x = Scale(-1.0, 1.0, left, width - 20)
    title = "ln(predicted / measured), group held out; the band is the 80 % of all rows"
    low, high = (sorted(held)[int(len(held) * share)] for share in (0.1, 0.9))
    parts = [
        svg.rect(0, 0, width, height, kind="page"),
        svg.text(8, 20, title, kind="title"),
        *legend(8, 40),
        svg.rect(x(low), top - 8, x(high) - x(low), height - top, kind="band"),
    ]
    for tick in (-1.0, -0.5, 0.0, 0.5, 1.0):
        parts.append(svg.line(x(tick), top - 8, x(tick), height - 8, kind="tick"))
        parts.append(svg.text(x(tick), top - 12, f"{exp(tick):.2f}x", anchor="middle"))
    for index, ((model, card), rows) in enumerate(sorted(groups.items())):
        y = top + row * (index + 0.5)
        parts.append(svg.text(left - 8, y + 4, f"{model.split(' (')[0]} · {card[:34]}", anchor="end"))
        parts += [point(x(max(-1.0, min(1.0, error))), y, sample) for error, sample in rows]
    return svg.drawing(width, height, parts, label=title, style=STYLE)


def scatter(data: list[calibrate.CalibrationSample], held: list[float]) -> str:
    """Return a drawing of predicted over measured values, both logarithmic."""
    size, left, top = 560.0, 56.0, 46.0
    edge = size - 40
    x = Scale(1.0, 10**4.8, left, edge, log=True)
    y = Scale(1.0, 10**4.8, edge + 8, left + 8, log=True)
    title = "Output tok/s, group held out (open: conditions assumed)"
    parts = [
        svg.rect(0, 0, size, size, kind="page"),
        svg.text(8, 20, title, kind="title"),
        *legend(8, 38),
    ]
    for value in (1, 10, 100, 1000, 10_000):
        parts += [
            svg.line(x(value), top, x(value), edge + 8, kind="grid"),
            svg.line(left, y(value), edge, y(value), kind="grid"),
            svg.text(x(value), edge + 22, f"{value:,}", anchor="middle"),
            svg.text(left - 6, y(value) + 4, f"{value:,}", anchor="end"),
        ]
    first, last = 10**0.31, 10**4.45
    for factor in (1.0, 2.0, 0.5):
        kind = "guide" if factor == 1.0 else "guide factor"
        parts.append(svg.line(x(first), y(first * factor), x(last), y(last * factor), kind=kind))
    parts += [
        point(x(sample.truth), y(sample.truth * exp(error)), sample, "cloud")
        for sample, error in zip(data, held, strict=True)
    ]
    parts.append(svg.text(size / 2, size - 4, "measured", anchor="middle"))
    parts.append(svg.text(left + 4, top + 10, "predicted"))
    return svg.drawing(size, size, parts, label=title, style=STYLE)


def by_condition(data: list[calibrate.CalibrationSample]) -> list[str]:
    """Return the rows of a Markdown table: errors with the source held out, by one condition at a time."""
    held = calibrate.cross_validate(data, lambda sample: sample.source)
    groups: dict[str, list[float]] = defaultdict(list)
    for sample, error in zip(data, held, strict=True):
        run = sample.workload
        names = (
            f"engine {run.engine}",
            f"mode {run.mode}",
            f"weights {run.precision.units}",
            "experts" if run.shape.moe else "dense",
            "several cards, NVLink" if run.layout.tp > 1 and run.card.link == "nvlink" else "",
            "several cards, PCIe" if run.layout.tp > 1 and run.card.link != "nvlink" else "",
            f"drafts {run.drafts}" if run.drafts else "",
            "trusted (weight 1)" if row_parser.number(sample.row.get("weight"), "weight") == 1.0 else "doubtful",
        )
        for name in filter(None, names):
            groups[name].append(float(error))
    rows = []
    for name, errors in sorted(groups.items()):
        size = sorted(map(abs, errors))
        median, p90, bias = (
            evaluate.quantile(values, share) for values, share in ((size, 0.5), (size, 0.9), (sorted(errors), 0.5))
        )
        rows.append(f"| {name} | {len(errors)} | {median:.2f} | {p90:.2f} | {bias:+.2f} |")
    return rows


def main() -> None:
    rows = evaluate.read(MEASUREMENTS)
    data = calibrate.samples(rows)
    held = [float(error) for error in calibrate.cross_validate(data, lambda sample: sample.group)]
    with (Path(__file__).parent / "held_out.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "card", "engine", "truth_tok_s", "predicted_tok_s", "ln_error", "assumed"])
        for sample, error in zip(data, held, strict=True):
            predicted = f"{sample.truth * exp(error):.1f}"
            assumed = "; ".join(sample.workload.assumed)
            writer.writerow(
                [*sample.group, sample.workload.engine, sample.truth, predicted, f"{error:.3f}", assumed]
            )
    (ROOT / "docs" / "img" / "planner-errors.svg").write_text(by_group(data, held), "utf-8")
    (ROOT / "docs" / "img" / "planner-scatter.svg").write_text(scatter(data, held), "utf-8")
    inside = sum(low <= -error <= high for sample, error in zip(data, held, strict=True)
                 for low, high in [throughput.interval(sample.workload)])  # fmt: skip
    print("\n".join(by_condition(data)))
    print(f"inside the shipped 80 % interval, held out: {inside / len(data):.3f}")


if __name__ == "__main__":
    main()
