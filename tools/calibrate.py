"""Fits the constants to the published measurements: ``python -m tools.calibrate``.

The fit is a least-squares fit of ln(predicted / true) with a bounded loss, so that a single row cannot distort it.
The ``spread`` of each constant ties it to its prior. All rows are computed at once: the terms of
:mod:`appliance.planner.terms` are stacked into arrays. Intervals follow from the errors of rows that were held out,
by source, by (model, card) and by time. The tool needs numpy; the planner does not.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.catalog.shipped import MEASUREMENTS
from appliance.errors import ApplianceError
from appliance.planner import constants, evaluate, row_parser
from appliance.planner.constants import Constants
from appliance.planner.throughput import LoopTerms, interval_class, loop_terms, loop_times, workload_memory
from appliance.planner.workload import Workload, check_workload

Vector = npt.NDArray[np.float64]

STEP = 1e-4
LOSS_SCALE = 0.1
"""Errors above this limit (in ln) count less: published conditions are often incomplete."""
GROUP_POWER = 0.6
"""A group of n rows has the weight n ** GROUP_POWER: repeated measurements of one set-up are not independent."""
PRIOR_WEIGHT = 0.04
"""Weight of the priors against the measurements. Much larger ones predict held-out sources a little better, and the
newest software worse."""
CLASS_ROWS = 120.0
"""Rows of a class that count as much as all rows for its interval.

Rows of one source err together, so the quantiles of a class rest on a few sources.
"""
CLUSTER_WIDTH = 1.05
"""Width of an interval against the quantiles of the held-out errors. The quantiles of the other sources alone hold
71 % of a source's rows; with this width and :data:`CLASS_ROWS` they hold 77 %."""
FOLDS = 8
SEED = 20261121
SPLIT = "2026-03"
"""First month of the test rows if the folds are by time."""


@dataclass(frozen=True, slots=True)
class CalibrationSample:
    """A measurement with its weight in the fit."""

    row: row_parser.Row
    workload: Workload
    terms: LoopTerms
    truth: float
    weight: float

    @property
    def group(self) -> tuple[str, str]:
        """Model and card."""
        return self.row.get("model") or "", self.workload.card.name

    @property
    def source(self) -> str:
        """The repository or the site of the measurement."""
        return source_of(self.row.get("source") or "")

    @property
    def date(self) -> str:
        """Month of the software."""
        return self.row.get("date") or ""


def source_of(address: str) -> str:
    """Return the repository or the site of an address."""
    plain = re.sub(r"^https?://(?:www\.)?", "", address)
    parts = plain.split("/")
    return "/".join(parts[1:3]) if parts[0] == "github.com" else parts[0]


def samples(rows: Sequence[row_parser.Row]) -> list[CalibrationSample]:
    """Return the rows that can be predicted, with their weights."""
    found = []
    for row in rows:
        try:
            workload = check_workload(row_parser.parse_row(row))
            truth = row_parser.truth_of(row)
            terms = loop_terms(workload, workload_memory(workload))
        except ApplianceError:
            continue
        if truth:
            weight = row_parser.number(row.get("weight"), "weight")
            found.append(CalibrationSample(row, workload, terms, truth, 1.0 if weight is None else weight))
    sizes: dict[Hashable, int] = defaultdict(int)
    for sample in found:
        sizes[sample.source, sample.group] += 1
    return [
        CalibrationSample(
            sample.row,
            sample.workload,
            sample.terms,
            sample.truth,
            sample.weight * sizes[sample.source, sample.group] ** (GROUP_POWER - 1),
        )
        for sample in found
    ]


def stack(parts: Sequence[Any]) -> Any:
    """Return one instance of the parts' dataclass whose numbers are arrays over all parts."""
    first = parts[0]
    values = {}
    for entry in fields(first):
        column = [getattr(part, entry.name) for part in parts]
        values[entry.name] = stack(column) if is_dataclass(column[0]) else np.array(column, dtype=np.float64)
    return type(first)(**values)


@dataclass(frozen=True, slots=True)
class Samples:
    """Measurements as arrays of n."""

    terms: LoopTerms
    log_truth: Vector
    weight: Vector

    def part(self, mask: npt.NDArray[np.bool_]) -> Samples:
        """Return the measurements for which ``mask`` is true."""
        return Samples(_select(self.terms, mask), self.log_truth[mask], self.weight[mask])


def _select(terms: Any, mask: npt.NDArray[np.bool_]) -> Any:
    values = {}
    for entry in fields(terms):
        value = getattr(terms, entry.name)
        values[entry.name] = _select(value, mask) if is_dataclass(value) else value[mask]
    return type(terms)(**values)


def as_arrays(data: Sequence[CalibrationSample]) -> Samples:
    """Return ``data`` as arrays."""
    return Samples(
        stack([sample.terms for sample in data]),
        np.log(np.array([sample.truth for sample in data])),
        np.array([sample.weight for sample in data]),
    )


def constants_at(shifts: Vector) -> Constants:
    """Return the priors changed by ``shifts`` (in units of ln, shape (c,)); shares stay at most 1."""
    values = {}
    for entry, shift in zip(fields(Constants), shifts, strict=True):
        value = float(entry.default) * exp(float(shift))  # type: ignore[arg-type]
        values[entry.name] = min(value, 1.0) if entry.metadata["unit"] == "share" else value
    return Constants(**values)


def errors(data: Samples, k: Constants) -> Vector:
    """Return ln(predicted / true) of each sample, shape (n,)."""
    error: Vector = np.log(loop_times(data.terms, k).rate) - data.log_truth
    return error


def fit(data: Samples, rounds: int = 40) -> Vector:
    """Return the shifts of all constants, shape (c,), by damped Gauss-Newton steps with a soft-L1 loss."""
    spread = np.array([entry.metadata["spread"] for entry in fields(Constants)])
    weight = np.sqrt(data.weight)
    shifts = np.zeros(len(spread))
    damping = 0.1

    def cost(error: Vector, at: Vector) -> float:
        loss = 2 * LOSS_SCALE**2 * (np.sqrt(1 + (error / LOSS_SCALE) ** 2) - 1)
        return float(np.sum(weight**2 * loss) + PRIOR_WEIGHT * np.sum((at / spread) ** 2))

    error = errors(data, constants_at(shifts))
    best = cost(error, shifts)
    for _ in range(rounds):
        jacobian = np.empty((len(error), len(spread)))
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


def folds(keys: Sequence[Hashable], count: int = FOLDS, seed: int = SEED) -> list[set[Hashable]]:
    """Return the different ``keys`` in ``count`` folds of about equal numbers of rows."""
    sizes: dict[Hashable, int] = defaultdict(int)
    for key in keys:
        sizes[key] += 1
    order = sorted(sizes, key=str)
    random.Random(seed).shuffle(order)  # noqa: S311
    order.sort(key=lambda key: -sizes[key])
    dealt: list[set[Hashable]] = [set() for _ in range(count)]
    loads = [0] * count
    for key in order:
        place = loads.index(min(loads))
        dealt[place].add(key)
        loads[place] += sizes[key]
    return dealt


def cross_validate(
    data: Sequence[CalibrationSample], key: Callable[[CalibrationSample], Hashable], *, count: int = FOLDS
) -> Vector:
    """Return the held-out ln(predicted / true) of each sample, shape (n,): no row of its ``key`` was fitted."""
    arrays = as_arrays(data)
    keys = [key(sample) for sample in data]
    held = np.zeros(len(data))
    for fold in folds(keys, count):
        inside = np.array([one in fold for one in keys])
        shifts = fit(arrays.part(~inside))
        held[inside] = errors(arrays.part(inside), constants_at(shifts))
    return held


def by_time(data: Sequence[CalibrationSample]) -> tuple[npt.NDArray[np.bool_], Vector]:
    """Return which samples are from :data:`SPLIT` or later, and their errors after a fit to the older ones."""
    arrays = as_arrays(data)
    late = np.array([sample.date >= SPLIT for sample in data])
    shifts = fit(arrays.part(~late))
    return late, errors(arrays.part(late), constants_at(shifts))


def interval_table(
    samples_of: Sequence[CalibrationSample], held: Sequence[Vector]
) -> dict[str, tuple[float, float]]:
    """Return by class of prediction the ends of the 80 % interval: quantiles of the held-out ln(true / predicted).

    ``held`` are the errors of several divisions into folds, each of shape (n,), NaN for samples that are not held
    out. The quantiles are those of split conformal prediction, with the correction for few rows. The figures of a
    class with few rows are mixed with those of all rows.
    """
    classes = np.array([interval_class(sample.workload) for sample in samples_of])
    table = {"all": _ends(np.concatenate([_known(-errors_of) for errors_of in held]))}
    for name in sorted(set(classes)):
        own = np.concatenate([_known(-errors_of[classes == name]) for errors_of in held])
        rows = int(np.sum(classes == name))
        share = rows / (rows + CLASS_ROWS)
        low, high = _ends(own)
        table[name] = (
            share * low + (1 - share) * table["all"][0],
            share * high + (1 - share) * table["all"][1],
        )
    if "far" in table:
        # A shape or a processor that is guessed is never more certain than a usual row.
        table["far"] = min(low for low, _ in table.values()), max(high for _, high in table.values()) + 0.01
    return table


def _known(values: Vector) -> Vector:
    return values[~np.isnan(values)]


def _ends(values: Vector) -> tuple[float, float]:
    spare = min(1.0, 0.8 * (1 + 1 / max(1, len(values)))) / 2
    low, high = np.quantile(values, [0.5 - spare, 0.5 + spare])
    return float(low) * CLUSTER_WIDTH, float(high) * CLUSTER_WIDTH


def inside(data: Sequence[CalibrationSample], error: Vector, table: dict[str, tuple[float, float]]) -> float:
    """Return the share of the truths inside their 80 % interval."""
    hits = 0
    for sample, one in zip(data, error, strict=True):
        low, high = table.get(interval_class(sample.workload), table["all"])
        hits += low <= -one <= high
    return hits / max(1, len(data))


def coverage(data: Sequence[CalibrationSample], held: Vector) -> float:
    """Return the share of truths inside the interval that the other sources' held-out errors give."""
    hits, keys = 0.0, [sample.source for sample in data]
    for fold in folds(keys, FOLDS):
        own = np.array([key in fold for key in keys])
        others = [sample for sample, one in zip(data, own, strict=True) if not one]
        table = interval_table(others, [held[~own]])
        part = [sample for sample, one in zip(data, own, strict=True) if one]
        hits += inside(part, held[own], table) * len(part)
    return hits / len(data)


def rank(data: Sequence[CalibrationSample], error: Vector) -> float:
    """Return the mean rank correlation within a (model, card) group of at least three rows."""
    return _mean_rank(data, error, lambda sample: sample.group, noise=0.0)


def rank_beyond_noise(data: Sequence[CalibrationSample], error: Vector) -> float:
    """Return the mean rank correlation in (source, model, card) groups; rates within the repeat noise are ties."""
    return _mean_rank(data, error, lambda sample: (sample.source, sample.group), noise=evaluate.REPEAT_NOISE)


def _mean_rank(
    data: Sequence[CalibrationSample], error: Vector, key: Callable[[CalibrationSample], Hashable], *, noise: float
) -> float:
    groups: dict[Hashable, list[evaluate.RowResult]] = defaultdict(list)
    for sample, one in zip(data, error, strict=True):
        predicted = sample.truth * exp(float(one))
        groups[key(sample)].append(
            evaluate.RowResult(row=sample.row, line=0, truth=sample.truth, predicted=predicted)
        )
    ranks = [one for group in groups.values() if (one := evaluate.spearman(group, noise)) is not None]
    return sum(ranks) / len(ranks)


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
    lines.append(
        "# ln(true / predicted) at the ends of the 80 % interval; sources, groups and months were held out."
    )
    for name, (low, high) in table.items():
        lines.append(f"[intervals.{name}]\nlow = {low:.3f}\nhigh = {high:.3f}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class PlannerCalibration:
    """The fitted constants, the intervals, and the lines of the report."""

    k: Constants
    table: dict[str, tuple[float, float]]
    held: dict[str, Vector]
    report: list[str]


def calibrate(data: Sequence[CalibrationSample]) -> PlannerCalibration:
    """Return the fit to ``data`` with its errors under three divisions: by source, by (model, card), by time."""
    arrays = as_arrays(data)
    by_source = cross_validate(data, lambda sample: sample.source)
    by_group = cross_validate(data, lambda sample: sample.group)
    late, late_errors = by_time(data)
    in_time = np.full(len(data), np.nan)
    in_time[late] = late_errors
    table = interval_table(data, [by_source, by_group, in_time])
    k = constants_at(fit(arrays))
    fitted = errors(arrays, k)
    lines = []
    for name, error, part in (
        ("held out by source", by_source, list(data)),
        ("held out by (model, card)", by_group, list(data)),
        (f"fitted before {SPLIT}, later rows", late_errors, [s for s, one in zip(data, late, strict=True) if one]),
        ("fitted to all", fitted, list(data)),
    ):
        size = np.abs(error)
        lines.append(
            f"| {name} | {len(size)} | {np.median(size):.3f} | {np.quantile(size, 0.9):.3f} "
            f"| {inside(part, error, table):.2f} | {rank(part, error):.2f} | {rank_beyond_noise(part, error):.2f} |"
        )
    lines.append(f"inside the interval of the other sources: {coverage(data, by_source):.2f}")
    return PlannerCalibration(k, table, {"source": by_source, "group": by_group, "time": in_time}, lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit the constants, print the held-out errors, and write ``constants.toml``."""
    shipped_constants = Path(constants.__file__).parent / "constants.toml"
    parser = argparse.ArgumentParser(prog="python -m tools.calibrate", description=__doc__)
    shipped = MEASUREMENTS
    parser.add_argument("--measurements", type=Path, default=shipped, help="CSV of measurements")
    parser.add_argument("--write", type=Path, default=shipped_constants, help="file for the constants")
    parser.add_argument("--dry-run", action="store_true", help="print the report only")
    args = parser.parse_args(argv)
    found = calibrate(samples(evaluate.read(args.measurements)))
    for line in found.report:
        sys.stdout.write(line + "\n")
    for entry in fields(Constants):
        sys.stdout.write(f"{entry.name:24s} {entry.default:10.3g} -> {getattr(found.k, entry.name):10.3g}\n")
    if not args.dry_run:
        args.write.write_text(dump(found.k, found.table), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
