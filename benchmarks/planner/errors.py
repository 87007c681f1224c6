"""Errors of the planner per group, held out: a CSV, and two drawings for docs/planner.md.

python benchmarks/planner/errors.py
"""

from __future__ import annotations

import csv
from collections import defaultdict
from math import exp, log10
from pathlib import Path

from appliance.catalog.shipped import MEASUREMENTS
from appliance.planner import evaluate, throughput
from tools import calibrate

ROOT = Path(__file__).parents[2]
COLOURS = {"vllm": "#2563a8", "sglang": "#7a4fb5", "tensorrt-llm": "#2e8b68", "llamacpp": "#c98a1b"}
STYLE = "<style>text{font:11px system-ui,sans-serif;fill:#4a5560}.h{font-weight:600;font-size:13px}</style>"


def text(x: float, y: float, what: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{what}</text>'


def frame(width: float, height: float, body: list[str]) -> str:
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}">'
    return f'{start}{STYLE}<rect width="100%" height="100%" fill="#fff"/>{"".join(body)}</svg>\n'


def legend(x: float, y: float) -> list[str]:
    parts = []
    for engine, colour in COLOURS.items():
        parts += [f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour}"/>', text(x + 8, y, engine)]
        x += 95
    return parts


def by_group(data: list[calibrate.CalibrationSample], held: list[float]) -> str:
    """A row per (model, card), a dot per measurement at ln(predicted / true)."""
    groups: dict[tuple[str, str], list[tuple[float, calibrate.CalibrationSample]]] = defaultdict(list)
    for sample, error in zip(data, held, strict=True):
        groups[sample.group].append((error, sample))
    left, width, row, top = 430.0, 910.0, 15.0, 54.0
    height = top + row * len(groups) + 16
    scale = (width - left - 20) / 2.0

    def at(error: float) -> float:
        return left + scale * (max(-1.0, min(1.0, error)) + 1.0)

    body = [text(8, 20, "ln(predicted / measured), group held out; the band is the 80 % of all rows", kind="h")]
    body += legend(8, 40)
    low, high = (sorted(held)[int(len(held) * share)] for share in (0.1, 0.9))
    wide = at(high) - at(low)
    band = f'x="{at(low):.1f}" y="{top - 8}" width="{wide:.1f}" height="{height - top}"'
    body.append(f'<rect {band} fill="#edf1f5"/>')
    for tick in (-1.0, -0.5, 0.0, 0.5, 1.0):
        ends = f'x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="{top - 8}" y2="{height - 8}"'
        body.append(f'<line {ends} stroke="#cbd3da"/>')
        body.append(text(at(tick), top - 12, f"{exp(tick):.2f}x", "middle"))
    for place, ((model, card), rows) in enumerate(sorted(groups.items())):
        y = top + row * (place + 0.5)
        body.append(text(left - 8, y + 4, f"{model.split(' (')[0]} · {card[:34]}", "end"))
        for error, sample in rows:
            shape = "none" if sample.workload.assumed else COLOURS[sample.workload.engine]
            stroke = COLOURS[sample.workload.engine]
            body.append(f'<circle cx="{at(error):.1f}" cy="{y:.1f}" r="3.4" fill="{shape}" stroke="{stroke}"/>')
    return frame(width, height, body)


def scatter(data: list[calibrate.CalibrationSample], held: list[float]) -> str:
    """Predicted over measured, both logarithmic."""
    size, left, top = 560.0, 56.0, 46.0
    edge = size - 40

    def at(value: float) -> float:
        return (log10(value) - 0.0) / 4.8 * (edge - left)

    body = [text(8, 20, "Output tok/s, group held out (open: conditions assumed)", kind="h"), *legend(8, 38)]
    for power in range(5):
        x, y = left + at(10**power), edge - at(10**power) + 8
        body.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{edge + 8}" stroke="#e3e7eb"/>')
        body.append(f'<line x1="{left}" x2="{edge}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e7eb"/>')
        body += [
            text(x, edge + 22, f"{10**power:,}", "middle"),
            text(left - 6, y + 4, f"{10**power:,}", "end"),
        ]
    for factor, dash in ((1.0, ""), (2.0, "4 4"), (0.5, "4 4")):
        x0, x1 = 10**0.31, 10**4.45
        body.append(
            f'<line x1="{left + at(x0):.1f}" y1="{edge + 8 - at(x0 * factor):.1f}" x2="{left + at(x1):.1f}" '
            f'y2="{edge + 8 - at(x1 * factor):.1f}" stroke="#9aa5af" stroke-dasharray="{dash}"/>'
        )
    for sample, error in zip(data, held, strict=True):
        x, y = left + at(sample.truth), edge + 8 - at(sample.truth * exp(error))
        colour = COLOURS[sample.workload.engine]
        fill = "none" if sample.workload.assumed else colour
        body.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="{fill}" fill-opacity="0.7" stroke="{colour}"/>'
        )
    body += [text(size / 2, size - 4, "measured", "middle"), text(left, top - 2, "predicted")]
    return frame(size, size, body)


def main() -> None:
    rows = evaluate.read(MEASUREMENTS)
    data = calibrate.samples(rows)
    held = [float(error) for error in calibrate.cross_validate(data)]
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
    print(f"inside the shipped 80 % interval, held out: {inside / len(data):.3f}")


if __name__ == "__main__":
    main()
