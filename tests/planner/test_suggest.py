"""The smallest change with which a model would fit."""

from __future__ import annotations

import pytest

from appliance.errors import UsageError
from appliance.planner.placement import advise
from tests.planner.conftest import MakeMachine, MakeModel, demand_for


def test_an_error_names_the_smallest_change_that_would_fit(model_demand: MakeModel, machine: MakeMachine) -> None:
    with pytest.raises(UsageError, match="nearest that fits: Qwen/Qwen3-32B in fp8"):
        advise((machine("1x RTX A6000"),), demand_for(model_demand("Qwen/Qwen3-32B")))
    with pytest.raises(UsageError, match=r"nearest that fits: [248] cards"):
        advise((machine("1x RTX 3090", 64),), demand_for(model_demand("meta-llama/Llama-3.3-70B-Instruct")))
