"""Errors of NVIDIA's aiconfigurator and of this planner, on the measurements that both predict.

Usage: ``python benchmarks/planner/compare_aiconfigurator.py``. The predictions of aiconfigurator are in
``aiconfigurator.csv``, which ``aiconfigurator_rows.py`` writes. This planner's errors are computed now, with the
source of each row held out; aiconfigurator has its own measurements of kernels. Prints two tables in Markdown: the
errors by engine, and the reasons of the rows that aiconfigurator refuses.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from math import log
from pathlib import Path

from appliance.catalog.shipped import MEASUREMENTS
from appliance.planner import evaluate
from tools import calibrate

FILE = Path(__file__).parent / "aiconfigurator.csv"


def figures(errors: Sequence[float]) -> str:
    """Return median and 90 % quantile of the absolute ``errors``, and their median, as cells of a table."""
    size = sorted(map(abs, errors))
    median, p90 = evaluate.quantile(size, 0.5), evaluate.quantile(size, 0.9)
    return f"{median:.2f} | {p90:.2f} | {evaluate.quantile(sorted(errors), 0.5):+.2f}"


def main() -> None:
    """Print both tables."""
    with FILE.open(encoding="utf-8", newline="") as file:
        theirs = {row["origin"]: row for row in csv.DictReader(file)}
    data = calibrate.samples(evaluate.read(MEASUREMENTS))
    held = calibrate.cross_validate(data, lambda sample: sample.source)
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    reasons: Counter[str] = Counter()
    for sample, error in zip(data, held, strict=True):
        row = theirs.get(sample.row["origin"] or "")
        if row is None:
            continue
        if row["refused"]:
            reasons[row["refused"].split("{")[0].split("'")[0].strip(" :(")] += 1
            continue
        pair = (float(error), log(float(row["predicted_tok_s"]) / sample.truth))
        run = sample.workload
        moe = "experts" if run.shape.moe else "dense"
        for name in ("all", f"engine {run.engine}", moe, f"mode {run.mode}", run.card.name):
            groups[name].append(pair)
    print("| rows | number | planner: median | p90 | bias | aiconfigurator: median | p90 | bias |")
    print("|---|---|---|---|---|---|---|---|")
    for name, pairs in sorted(groups.items(), key=lambda group: (group[0] != "all", group[0])):
        ours, other = zip(*pairs, strict=True)
        print(f"| {name} | {len(pairs)} | {figures(ours)} | {figures(other)} |")
    print(f"\n{len(theirs)} of {len(data)} rows have a card, model, engine and precision of aiconfigurator.")
    print("\n| refused by aiconfigurator | rows |\n|---|---|")
    for reason, count in reasons.most_common():
        print(f"| {reason} | {count} |")


if __name__ == "__main__":
    main()
