"""Percentiles, intervals and fairness. Pure; formulas with their sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054
"""97.5th percentile of the standard normal distribution: two-sided 95 %."""

T95 = {4: 2.776, 9: 2.262}
"""97.5th percentiles of Student's t by degrees of freedom."""

BATCHES = 10


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval; a bound is ``None`` if the data does not give it."""

    value: float
    low: float | None
    high: float | None

    def scaled(self, factor: float) -> Interval:
        """Return figure and bounds multiplied by ``factor``, which is not negative."""
        low, high = (None if bound is None else bound * factor for bound in (self.low, self.high))
        return Interval(self.value * factor, low, high)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of ``values``, ``share`` in 0..1: a value that occurred."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def percentile_interval(values: Sequence[float], share: float) -> Interval:
    """Return a percentile with the 95 % interval of its order statistics.

    The number of n values below the true percentile is binomial. By its normal approximation the true percentile is
    between the values of rank ``n p -+ z sqrt(n p (1 - p))`` (Hahn and Meeker, Statistical Intervals, 5.2). A rank
    outside 1..n has no value: with few samples a p99 has no upper bound, and the result states that.
    """
    ordered = sorted(values)
    count = len(ordered)
    spread = Z95 * math.sqrt(count * share * (1 - share))
    low, high = math.floor(count * share - spread), math.ceil(count * share + spread) + 1
    return Interval(
        percentile(ordered, share),
        ordered[low - 1] if low >= 1 else None,
        ordered[high - 1] if high <= count else None,
    )


def wilson(successes: int, trials: int) -> Interval:
    """Return a share with Wilson's score interval at 95 % (Wilson 1927), valid also at 0 of n and n of n."""
    if trials <= 0:
        return Interval(0.0, 0.0, 1.0)
    share = successes / trials
    weight = 1 + Z95**2 / trials
    centre = (share + Z95**2 / (2 * trials)) / weight
    half = Z95 / weight * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    # At the ends centre and half are equal except for rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Interval(share, low, high)


def jain(amounts: Sequence[float]) -> float | None:
    """Return Jain's fairness index ``(sum x)^2 / (n sum x^2)``: 1 for equal amounts, 1/n if one user has all.

    Jain, Chiu, Hawe 1984. ``None`` for fewer than two users, or if all amounts are 0.
    """
    squares = sum(amount**2 for amount in amounts)
    if len(amounts) < 2 or squares == 0:
        return None
    return sum(amounts) ** 2 / (len(amounts) * squares)


def batch_means(batches: Sequence[float]) -> Interval | None:
    """Return the mean of consecutive batches with Student's 95 % interval; ``None`` unless there are 5 or 10.

    Consecutive values of a load test depend on each other; means of long batches are almost independent.
    """
    count = len(batches)
    if count - 1 not in T95:
        return None
    mean = sum(batches) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in batches) / (count - 1))
    half = T95[count - 1] * deviation / math.sqrt(count)
    return Interval(mean, max(0.0, mean - half), mean + half)
