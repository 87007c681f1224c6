"""Percentiles, intervals and fairness, against published values and their own coverage."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.estimates import Interval, batch_means, jain, percentile, percentile_interval, wilson


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.01, 1))
def test_percentiles_are_values_that_occurred(values: list[float], share: float) -> None:
    value = percentile(values, share)
    assert value in values
    assert sum(v <= value for v in values) >= share * len(values) - 1e-9
    around = percentile_interval(values, share)
    assert around.low is None or around.low <= value
    assert around.high is None or value <= around.high


def test_intervals_have_their_coverage() -> None:
    rng = random.Random(7)
    hits = sum(
        (i := percentile_interval([rng.random() for _ in range(200)], 0.9)).low is not None
        and i.high is not None
        and i.low <= 0.9 <= i.high
        for _ in range(400)
    )
    assert 0.92 <= hits / 400 <= 1
    assert percentile_interval([1.0] * 50, 0.99).high is None, "50 values do not bound a p99 from above"
    assert percentile_interval([1.0] * 1000, 0.99).high == 1.0


def test_wilson_matches_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    one = wilson(81, 263)
    assert (round(one.low or 0, 4), round(one.high or 0, 4)) == (0.2553, 0.3662)
    assert round(wilson(0, 20).high or 0, 4) == 0.1611
    assert wilson(0, 20).low == 0
    assert wilson(0, 0) == Interval(0.0, 0.0, 1.0)


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=30))
def test_jain_is_between_its_bounds(amounts: list[float]) -> None:
    index = jain(amounts)
    assert index is None or 1 / len(amounts) - 1e-9 <= index <= 1 + 1e-9
    assert jain([3.0] * len(amounts)) == pytest.approx(1)
    assert jain([5.0, 0, 0, 0]) == pytest.approx(0.25)


def test_batch_means_have_students_interval() -> None:
    mean = batch_means([10.0] * 10)
    assert mean == Interval(10.0, 10.0, 10.0)
    assert batch_means([1.0, 2.0]) is None
    values = [float(i) for i in range(10)]
    one = batch_means(values)
    assert one is not None
    assert one.high is not None
    assert one.high - 4.5 == pytest.approx(2.262 * statistics.stdev(values) / math.sqrt(10))
