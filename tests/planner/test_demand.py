"""Demands that are out of range or contradict themselves."""

from __future__ import annotations

import pytest

from appliance.errors import UsageError
from appliance.planner.placement import advise
from tests.planner.conftest import PRO, MakeMachine, MakeModel, demand_for


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"users": 0}, "users = 0 is out of range; nearest valid value: 1"),
        ({"chats": -5}, "chats = -5"),
        ({"chats": 10**9}, "nearest valid value: 1e+06"),
    ],
)
def test_a_demand_out_of_range_is_rejected(
    model_demand: MakeModel, machine: MakeMachine, changes: dict[str, int], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        advise((machine(),), demand_for(model_demand(), **changes))
    assert words in str(caught.value)


def test_impossible_shares_contexts_and_machines_are_rejected(
    model_demand: MakeModel, machine: MakeMachine
) -> None:
    for demand, words in (
        (demand_for(model_demand(share=0.4)), "shares add up to 0.4"),
        (demand_for(model_demand(context=50000)), "nearest: 40960"),
        (demand_for(model_demand(context=1000)), "nearest: context 2400"),
        (demand_for(), "the demand names no model"),
    ):
        with pytest.raises(UsageError, match=words):
            advise((machine(),), demand)
    with pytest.raises(UsageError, match="nearest valid: 8 per machine"):
        advise((machine(f"9x {PRO}"),), demand_for(model_demand()))
    with pytest.raises(UsageError, match="nearest valid value: 8"):
        advise(tuple(machine(name=f"m{number}") for number in range(9)), demand_for(model_demand()))
