"""Fits the constants to the published measurements: ``python -m tools.calibrate``.

The fit is a least-squares fit of ln(predicted / true) with a bounded loss, so that a single row cannot distort it.
The ``spread`` of each constant ties it to its prior. Intervals follow from the errors of rows whose (model, card)
group was held out. The tool needs numpy; the planner does not.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import exp, log
from pathlib import Path

import numpy as np
import numpy.typing as npt

from appliance.catalog.shipped import MEASUREMENTS
from appliance.errors import ApplianceError
from appliance.planner import constants, evaluate, row_parser
from appliance.planner.constants import Constants, names
from appliance.planner.throughput import interval_class, predict
from appliance.planner.workload import Workload

Vector = npt.NDArray[np.float64]

SHARES = {name for name in names() if name.endswith("_share") or name == "memory_share"}
STEP = 1e-4
LOSS_SCALE = 0.25
"""Errors above this limit (in ln) count less: published conditions are often incomplete."""
ASSUMED_WEIGHT = 0.4
"""Weight of a row whose conditions had to be assumed."""
GROUP_POWER = 0.5
"""A group of n rows has the weight n ** GROUP_POWER: repeated measurements of one set-up are not independent."""
PRIOR_WEIGHT = 0.02
"""Weight of the priors against the measurements: about the squared error of a set-up with all conditions known."""
FOLDS = 5
SEED = 20261121


@dataclass(frozen=True, slots=True)
class CalibrationSample:
    """A measurement with its weight in the fit."""

    workload: Workload
    truth: float
    group: tuple[str, str]
    weight: float


def samples(rows: Sequence[row_parser.Row]) -> list[CalibrationSample]:
    """Return the rows that can be predicted, with their weights."""
    found = []
    for row in rows:
        try:
            workload = row_parser.parse_row(row)
            truth = row_parser.number(row.get("output_tok_s"), "output_tok_s")
            predict(workload, Constants())
        except ApplianceError:
            continue
        if truth:
            found.append((workload, truth, (row.get("model") or "", row.get("gpu") or "")))
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    for _, _, group in found:
        sizes[group] += 1
    return [
        CalibrationSample(
            workload=workload,
            truth=truth,
            group=group,
            weight=sizes[group] ** (GROUP_POWER - 1) * (ASSUMED_WEIGHT if workload.assumed else 1.0),
        )
        for workload, truth, group in found
    ]


def constants_at(shifts: Vector) -> Constants:
    """Return the priors changed by ``shifts`` (in units of ln, shape (c,)); shares stay at most 1."""
    values = {}
    for entry, shift in zip(fields(Constants), shifts, strict=True):
        value = float(entry.default) * exp(float(shift))  # type: ignore[arg-type]
        values[entry.name] = min(value, 1.0) if entry.metadata["unit"] == "share" else value
    return Constants(**values)


def errors(data: Sequence[CalibrationSample], k: Constants) -> Vector:
    """Return ln(predicted / true) of each sample, shape (n,)."""
    return np.array([log(predict(sample.workload, k).output_tok_s / sample.truth) for sample in data])


def fit(data: Sequence[CalibrationSample], rounds: int = 25) -> Vector:
    """Return the shifts of all constants, shape (c,), by damped Gauss-Newton steps with a soft-L1 loss."""
    spread = np.array([entry.metadata["spread"] for entry in fields(Constants)])
    weight = np.sqrt(np.array([sample.weight for sample in data]))
    shifts = np.zeros(len(spread))
    damping = 0.1

    def cost(error: Vector, at: Vector) -> float:
        loss = 2 * LOSS_SCALE**2 * (np.sqrt(1 + (error / LOSS_SCALE) ** 2) - 1)
        return float(np.sum(weight**2 * loss) + PRIOR_WEIGHT * np.sum((at / spread) ** 2))

    error = errors(data, constants_at(shifts))
    best = cost(error, shifts)
    for _ in range(rounds):
        jacobian = np.empty((len(data), len(spread)))
        for index in range(len(spread)):
            moved = shifts.copy()
            moved[index] += STEP
            jacobian[:, index] = (errors(data, constants_at(moved)) - error) / STEP
        soft = (1 + (error / LOSS_SCALE) ** 2) ** -0.25
        rows = jacobian * (weight * soft)[:, None]
        right = error * weight * soft
        normal = rows.T @ rows + PRIOR_WEIGHT * np.diag(1 / spread**2)
        slope = rows.T @ right + PRIOR_WEIGHT * shifts / spread**2
        for _ in range(6):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slope)
            trial = shifts + np.clip(step, -0.5, 0.5)
            trial_error = errors(data, constants_at(trial))
            trial_cost = cost(trial_error, trial)
            if trial_cost < best:
                break
            damping *= 4
        else:
            break
        gain, best, shifts, error, damping = best - trial_cost, trial_cost, trial, trial_error, damping / 3
        if gain < 1e-4 * best:
            break
    return shifts


def folds(data: Sequence[CalibrationSample], count: int = FOLDS, seed: int = SEED) -> list[set[tuple[str, str]]]:
    """Return the groups of ``data`` in ``count`` folds of about equal size."""
    groups: dict[tuple[str, str], int] = defaultdict(int)
    for sample in data:
        groups[sample.group] += 1
    order = sorted(groups)
    random.Random(seed).shuffle(order)  # noqa: S311
    order.sort(key=lambda group: -groups[group])
    dealt: list[set[tuple[str, str]]] = [set() for _ in range(count)]
    loads = [0] * count
    for group in order:
        place = loads.index(min(loads))
        dealt[place].add(group)
        loads[place] += groups[group]
    return dealt


def cross_validate(data: Sequence[CalibrationSample], seed: int = SEED) -> Vector:
    """Return the held-out ln(predicted / true) of each sample, shape (n,): no row of its group was fitted."""
    held = np.zeros(len(data))
    for fold in folds(data, seed=seed):
        shifts = fit([sample for sample in data if sample.group not in fold])
        inside = [index for index, sample in enumerate(data) if sample.group in fold]
        held[inside] = errors([data[index] for index in inside], constants_at(shifts))
    return held


def interval_table(data: Sequence[CalibrationSample], held: Vector) -> dict[str, tuple[float, float]]:
    """Return by class of prediction the 10th and 90th percentile of the held-out ln(true / predicted).

    The figures of a class with few rows are mixed with those of all rows.
    """
    table = {"all": _ends(-held)}
    for name in sorted({interval_class(sample.workload) for sample in data}):
        own = np.array(
            [-error for sample, error in zip(data, held, strict=True) if interval_class(sample.workload) == name]
        )
        share = len(own) / (len(own) + 10.0)
        low, high = _ends(own)
        table[name] = (
            share * low + (1 - share) * table["all"][0],
            share * high + (1 - share) * table["all"][1],
        )
    return table


def _ends(values: Vector) -> tuple[float, float]:
    low, high = np.quantile(values, [0.1, 0.9])
    return float(low), float(high)


def dump(k: Constants, table: dict[str, tuple[float, float]]) -> str:
    """Return the text of ``constants.toml``."""
    lines = [
        "# Written by `python -m tools.calibrate`; meanings and priors are in constants.py.",
        "",
    ]
    for entry in fields(Constants):
        lines += [
            f"[constants.{entry.name}]",
            f"value = {getattr(k, entry.name):.4g}",
            f"prior = {entry.default:.4g}",
            f'unit = "{entry.metadata["unit"]}"',
            f'meaning = "{entry.metadata["meaning"]}"',
            "",
        ]
    lines.append("# ln(true / predicted) at the 10th and 90th percentile, groups held out.")
    for name, (low, high) in table.items():
        lines.append(f"[intervals.{name}]\nlow = {low:.3f}\nhigh = {high:.3f}")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Fit the constants, print the held-out errors, and write ``constants.toml``."""
    shipped_constants = Path(constants.__file__).parent / "constants.toml"
    parser = argparse.ArgumentParser(prog="python -m tools.calibrate", description=__doc__)
    shipped = MEASUREMENTS
    parser.add_argument("--measurements", type=Path, default=shipped, help="CSV of measurements")
    parser.add_argument("--write", type=Path, default=shipped_constants, help="file for the constants")
    parser.add_argument("--dry-run", action="store_true", help="print the report only")
    args = parser.parse_args(argv)
    data = samples(evaluate.read(args.measurements))
    held = cross_validate(data)
    k = constants_at(fit(data))
    fitted = errors(data, k)
    stated = np.array([not sample.workload.assumed for sample in data])
    for name, values in (("held out", held), ("fitted", fitted)):
        for which, mask in (("all rows", np.ones(len(data), bool)), ("conditions stated", stated)):
            size = np.abs(values[mask])
            sys.stdout.write(
                f"{name:9s} {which:18s} n {len(size):3d}  median {np.median(size):.3f}  "
                f"p90 {np.quantile(size, 0.9):.3f}\n"
            )
    table = interval_table(data, held)
    for entry in fields(Constants):
        sys.stdout.write(f"{entry.name:24s} {entry.default:10.3g} -> {getattr(k, entry.name):10.3g}\n")
    if not args.dry_run:
        args.write.write_text(dump(k, table), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
