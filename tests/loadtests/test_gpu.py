"""Samples of GPUs."""

from __future__ import annotations

from appliance.system.nvidia_smi import parse_rows
from loadtests.gpu import FIELDS, sample_of, throttled


def test_a_gpu_sample_names_the_reasons_of_a_slowdown() -> None:
    (row,) = parse_rows("1, 83, 598.20, 99, 0x0000000000000024", FIELDS)
    card = sample_of(row)
    assert (card.index, card.temperature_c, card.power_w, card.utilization) == (1, 83, 598.2, 99)
    assert throttled(card.reasons) == ["power cap (software)", "temperature (software)"]
    (row,) = parse_rows("0, [N/A], [N/A], [N/A], [N/A]", FIELDS)
    assert (sample_of(row).temperature_c, sample_of(row).reasons) == (None, 0)
    assert throttled(0x1) == [], "idle is not a slowdown"
