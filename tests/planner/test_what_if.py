"""The effects of changes to the hardware."""

from __future__ import annotations

from appliance.planner.placement import advise
from appliance.planner.what_if import changes
from tests.planner.conftest import PRO, MakeMachine, MakeModel, demand_for


def test_the_effects_of_a_second_card_and_of_power_limits_are_predicted(
    model_demand: MakeModel, machine: MakeMachine
) -> None:
    found = {change.what: change.plan for change in changes((machine(),), demand_for(model_demand()))}
    assert set(found) == {f"a further {PRO}", "300 W per card", "450 W per card", "512 GiB of RAM"}
    one = advise((machine(),), demand_for(model_demand())).best
    second, weak = found[f"a further {PRO}"], found["300 W per card"]
    assert second is not None
    assert second.headroom > 1.8 * one.headroom
    assert weak is not None
    assert weak.headroom < one.headroom
