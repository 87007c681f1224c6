"""Cross-validation of the constants over the public measurements."""

from __future__ import annotations

import numpy as np

from appliance.catalog.shipped import MEASUREMENTS
from appliance.planner import evaluate
from tools import calibrate

ROWS = evaluate.read(MEASUREMENTS)


def test_held_out_errors_are_within_their_limits() -> None:
    data = calibrate.samples(ROWS)
    size = np.abs(calibrate.cross_validate(data))
    assert np.median(size) <= 0.22
    assert np.quantile(size, 0.9) <= 0.70


def test_no_group_is_in_two_folds() -> None:
    data = calibrate.samples(ROWS)
    dealt = calibrate.folds(data)
    assert sum(len(fold) for fold in dealt) == len(set.union(*dealt)) == len({sample.group for sample in data})
