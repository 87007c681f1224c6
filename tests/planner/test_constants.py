"""The description and the range of every constant."""

from __future__ import annotations

import dataclasses

from appliance.planner.constants import Constants, calibrated, names


def test_every_constant_has_a_meaning_a_source_and_a_spread() -> None:
    assert len(names()) <= 50
    for entry in dataclasses.fields(Constants):
        assert entry.metadata["meaning"]
        assert entry.metadata["source"]
        assert entry.metadata["spread"] > 0
        assert getattr(calibrated(), entry.name) > 0
    shares = [entry.name for entry in dataclasses.fields(Constants) if entry.metadata["unit"] == "share"]
    assert all(getattr(calibrated(), name) <= 1 for name in shares)
