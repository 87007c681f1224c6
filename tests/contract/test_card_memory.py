"""The fit rule of a card at its limit, and its message."""

from __future__ import annotations

import pytest

from appliance.contract.card_memory import GIB, shortage


@pytest.mark.parametrize(("weights", "fits"), [(36.0, True), (36.01, False), (0.0, True)])
def test_weights_fit_up_to_the_budget_less_the_working_space(weights: float, fits: bool) -> None:
    lacking = shortage(weights=weights * GIB, working_space=4 * GIB, memory=80 * GIB, utilization=0.5)
    assert (lacking is None) == fits


def test_the_message_names_weights_room_utilization_and_working_space() -> None:
    lacking = shortage(weights=60 * GIB, working_space=4 * GIB, memory=80 * GIB, utilization=0.5)
    assert lacking == (
        "60.0 GiB of weights per card do not fit the 36.0 GiB that gpu_memory_utilization = 0.5 leaves "
        "after 4.0 GiB of working space"
    )


def test_a_budget_below_the_working_space_leaves_no_room() -> None:
    lacking = shortage(weights=GIB, working_space=4 * GIB, memory=8 * GIB, utilization=0.25)
    assert lacking is not None
    assert "do not fit the 0.0 GiB" in lacking
