"""The errors of predictions against measurements, by row and by group."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path

from appliance.errors import ApplianceError, ConfigError
from appliance.planner import row_parser
from appliance.planner.constants import Constants
from appliance.planner.throughput import interval, predict

REPEAT_NOISE = 0.02
"""Difference (in ln) below which two rates of a group have no order: the median over repeated runs in the table."""

REQUIRED = ("gpu", "model", "output_tok_s")
"""Columns that every file of measurements has."""


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row: the measured value, and the prediction with its interval or the reason for a refusal."""

    row: row_parser.Row
    line: int
    truth: float | None
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    refused: str | None = None
    assumed: tuple[str, ...] = ()

    @property
    def group(self) -> tuple[str, str]:
        """Model and card."""
        return self.row.get("model") or "", self.row.get("gpu") or ""

    @property
    def error(self) -> float | None:
        """ln(predicted / true)."""
        if self.predicted is None or self.truth is None:
            return None
        return log(self.predicted / self.truth)

    @property
    def inside(self) -> bool:
        """Whether the measured value is inside the interval."""
        return (
            self.truth is not None
            and self.low is not None
            and self.high is not None
            and (self.low <= self.truth <= self.high)
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a set of results."""

    rows: int
    answered: int
    median: float | None
    p90: float | None
    inside: float | None
    rank: float | None
    """Spearman's rank correlation within a group, mean over groups of at least three rows."""
    rank_median: float | None


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV of measurements; :class:`ConfigError` if it is not one."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [{key: value or "" for key, value in row.items() if isinstance(key, str)} for row in reader]
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV ({error}); give a file like measurements.csv") from None
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise ConfigError(f"{path}: has no column {missing[0]!r}; the columns are those of measurements.csv")
    if not rows:
        raise ConfigError(f"{path}: holds no rows; one measurement per line")
    return rows


def evaluate(rows: Sequence[row_parser.Row], k: Constants | None = None) -> list[RowResult]:
    """Return the result of every row: a prediction, or the reason for a refusal."""
    results = []
    for line, row in enumerate(rows, 2):
        truth: float | None = None
        try:
            truth = row_parser.truth_of(row)
            workload = row_parser.parse_row(row)
            prediction = predict(workload, k)
            low, high = interval(workload)
            rate = prediction.rate
            results.append(
                RowResult(
                    row=row,
                    line=line,
                    truth=truth,
                    predicted=rate,
                    low=rate * exp(low),
                    high=rate * exp(high),
                    assumed=workload.assumed,
                )
            )
        except ApplianceError as error:
            results.append(RowResult(row=row, line=line, truth=truth, refused=str(error)))
    return results


def summarise(results: Iterable[RowResult]) -> Summary:
    """Return the figures over ``results``."""
    everything = list(results)
    scored = [result for result in everything if result.error is not None]
    errors = sorted(abs(result.error or 0.0) for result in scored)
    groups = by_group(scored)
    ranks = [rank for group in groups.values() if (rank := spearman(group)) is not None]
    return Summary(
        rows=len(everything),
        answered=sum(result.predicted is not None for result in everything),
        median=quantile(errors, 0.5) if errors else None,
        p90=quantile(errors, 0.9) if errors else None,
        inside=sum(result.inside for result in scored) / len(scored) if scored else None,
        rank=sum(ranks) / len(ranks) if ranks else None,
        rank_median=quantile(sorted(ranks), 0.5) if ranks else None,
    )


def by_group(results: Iterable[RowResult]) -> dict[tuple[str, str], list[RowResult]]:
    """Return the results by (model, card), in the order of their first row."""
    groups: dict[tuple[str, str], list[RowResult]] = defaultdict(list)
    for result in results:
        groups[result.group].append(result)
    return dict(groups)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the linear quantile of an ordered sequence; ``share`` is between 0 and 1."""
    place = (len(ordered) - 1) * share
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spearman(results: Sequence[RowResult], noise: float = 0.0) -> float | None:
    """Return the rank correlation of measured and predicted values.

    Values within ``noise`` (a difference of logarithms) of each other are ties, measured and predicted ones alike.
    None for fewer than three rows, or if all measured values are equal.
    """
    truths = [result.truth or 0.0 for result in results]
    guesses = [result.predicted or 0.0 for result in results]
    if len(results) < 3:
        return None
    x, y = _ranks(truths, noise), _ranks(guesses, noise)
    if len(set(x)) < 2:
        return None
    if len(set(y)) < 2:
        return 0.0
    mean = (len(x) - 1) / 2.0
    covariance = sum((a - mean) * (b - mean) for a, b in zip(x, y, strict=True))
    spread = (sum((a - mean) ** 2 for a in x) * sum((b - mean) ** 2 for b in y)) ** 0.5
    return float(covariance / spread)


def _ranks(values: Sequence[float], noise: float) -> list[float]:
    """Return ranks from 0; ties share their mean.

    Ties are within ``noise`` of the least of them in the logarithm, and never less than a millionth.
    """
    reach = exp(max(noise, 1e-6))
    order = sorted(range(len(values)), key=lambda index: values[index])
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        first = values[order[start]]
        while end + 1 < len(order) and values[order[end + 1]] <= first * reach:
            end += 1
        for place in range(start, end + 1):
            ranks[order[place]] = (start + end) / 2.0
        start = end + 1
    return ranks
