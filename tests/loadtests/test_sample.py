"""Gaps between tokens in buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.estimates import percentile
from loadtests.sample import Gaps


@given(st.lists(st.floats(1e-5, 50), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_gaps_keep_percentiles_to_half_a_percent(values: list[float], share: float) -> None:
    gaps, halves = Gaps(), (Gaps(), Gaps())
    for place, value in enumerate(values):
        gaps.add(value, 1.0)
        halves[place % 2].add(value, 1.0)
    seen = gaps.percentile(share)
    assert seen == pytest.approx(percentile(values, share), rel=0.006)
    assert gaps.longest == max(values)
    halves[0].merge(halves[1])
    assert halves[0].percentile(share) == seen
