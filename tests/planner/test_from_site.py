"""The demand of a site's models."""

from __future__ import annotations

import pytest

from appliance.contract import load
from appliance.errors import UsageError
from appliance.planner.from_site import model_demands_of
from tests.planner.conftest import EXAMPLES


def test_shares_are_stated_by_role_or_model() -> None:
    site = load.load(next(path for path in EXAMPLES if path.stem.startswith("eight")))
    demands = model_demands_of(site, {"planner": 0.2, "coder": 0.5})
    shares = {demand.name: demand.share for demand in demands}
    assert shares == pytest.approx({"qwen3-235b": 0.2, "qwen3-30b": 0.5, "qwen3-embed": 0.3})
    with pytest.raises(UsageError, match=r"did you mean 'planner'"):
        model_demands_of(site, {"planer": 0.2})
    with pytest.raises(UsageError, match=r"shares add up to 1\.4"):
        model_demands_of(site, {"planner": 0.7, "coder": 0.7})
