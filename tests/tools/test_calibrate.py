"""Cross-validation of the constants over the public measurements."""

from __future__ import annotations

import numpy as np
import pytest

from appliance.catalog.shipped import MEASUREMENTS
from appliance.planner import evaluate
from appliance.planner.constants import Constants, calibrated
from appliance.planner.throughput import predict
from tools import calibrate

DATA = calibrate.samples(evaluate.read(MEASUREMENTS))


def test_held_out_errors_are_within_their_limits() -> None:
    size = np.abs(calibrate.cross_validate(DATA, lambda sample: sample.source, count=2))
    assert np.median(size) <= 0.28
    assert np.quantile(size, 0.9) <= 0.85


def test_the_repeat_noise_is_the_median_spread_of_runs_with_equal_conditions() -> None:
    runs: dict[object, list[float]] = {}
    for sample in DATA:
        runs.setdefault((sample.source, sample.workload), []).append(np.log(sample.truth))
    spreads = [max(rates) - min(rates) for rates in runs.values() if len(rates) > 1]
    assert len(spreads) >= 10
    assert np.median(spreads) == pytest.approx(evaluate.REPEAT_NOISE, abs=0.005)


def test_ranks_beyond_the_noise_ignore_swaps_within_it() -> None:
    part = [sample for sample in DATA if sample.source == "tomyimkc/polygraph"]
    assert calibrate.rank_beyond_noise(part, np.zeros(len(part))) == pytest.approx(1)
    worst = np.array([-2 * np.log(sample.truth) for sample in part])
    assert calibrate.rank_beyond_noise(part, worst) < 0


def test_no_source_is_in_two_folds() -> None:
    keys = [sample.source for sample in DATA]
    dealt = calibrate.folds(keys, 5)
    assert sum(len(fold) for fold in dealt) == len(set.union(*dealt)) == len(set(keys))


def test_arrays_and_single_predictions_agree() -> None:
    part = DATA[::40]
    found = calibrate.errors(calibrate.as_arrays(part), calibrated())
    for sample, error in zip(part, found, strict=True):
        assert predict(sample.workload).rate == pytest.approx(sample.truth * np.exp(error))


def test_a_row_of_little_weight_hardly_moves_the_fit() -> None:
    part = DATA[:40]
    light = [*part, calibrate.CalibrationSample(part[0].row, part[0].workload, part[0].terms, 1.0, 1e-6)]
    heavy = [*part, calibrate.CalibrationSample(part[0].row, part[0].workload, part[0].terms, 1.0, 50.0)]
    base, same, moved = (calibrate.fit(calibrate.as_arrays(one), rounds=4) for one in (part, light, heavy))
    assert np.abs(same - base).max() < 1e-3
    assert np.abs(moved - base).max() > 0.05


def test_intervals_hold_the_stated_share_of_their_errors() -> None:
    held = np.linspace(-1.0, 1.0, len(DATA))
    table = calibrate.interval_table(DATA, [held])
    end = 0.8 * calibrate.CLUSTER_WIDTH
    assert table["all"] == pytest.approx((-end, end), abs=0.01)
    assert calibrate.inside(DATA, held, {"all": table["all"]}) == pytest.approx(end, abs=0.01)


def test_the_shipped_constants_stay_near_their_priors() -> None:
    prior = Constants()
    for name in ("memory_share", "layer_s", "bf16_share"):
        assert 0.5 < getattr(calibrated(), name) / getattr(prior, name) < 2.0
