"""The engines section of a plan, and its place in a site's file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from appliance.contract import load
from appliance.contract.model import Site
from appliance.contract.rules import violations
from appliance.planner.demand import Demand
from appliance.planner.engines_section import engines_section, replace_engines
from appliance.planner.fit import fit
from appliance.planner.from_site import hardware_of, model_demands_of
from appliance.planner.placement import advise
from tests.planner.conftest import EXAMPLES


@pytest.mark.parametrize(
    "path",
    [path for path in EXAMPLES if path.stem in ("eight-cards-hybrid", "one-card")],
    ids=lambda path: path.stem,
)
def test_a_written_plan_is_valid_and_fits(path: Path) -> None:
    site = load.load(path)
    models = model_demands_of(site, {})
    demand = Demand(users=20, chats=40, think_s=60.0, models=models)
    advice = advise(hardware_of(site), demand)
    plan = next(plan for plan, _ in advice.alternatives if plan.writable)
    text = replace_engines(path.read_text("utf-8"), engines_section(plan, site))
    written = Site.model_validate_json(json.dumps(tomllib.loads(text)))
    assert violations(written) == []
    assert fit(written) == []
    assert {engine.model for engine in written.engines.values()} == set(site.models)
    for name in ("hosts", "models", "roles", "limits", "users", "gateway"):
        assert getattr(written, name) == getattr(site, name)
    # The user's settings on an engine are kept.
    old = next(engine for engine in site.engines.values() if engine.options)
    new = next(engine for engine in written.engines.values() if engine.model == old.model)
    assert new.options == old.options
    assert path.read_text("utf-8").splitlines()[0] == text.splitlines()[0]


def test_comments_and_other_tables_are_kept() -> None:
    text = "a = 1\n\n[engines.x]\nport = 1\n# about the port\n\n# The roles.\n[roles.r]\nmodel = 'm'\n"
    written = replace_engines(text, "[engines.y]\nport = 2\n")
    assert written.startswith("a = 1\n\n[engines.y]\nport = 2\n")
    assert written.endswith("# The roles.\n[roles.r]\nmodel = 'm'\n")
    assert "port = 1" not in written


def test_engines_are_appended_to_a_site_without_engines() -> None:
    assert replace_engines("version = 1\n", "[engines.a]\n") == "version = 1\n\n[engines.a]\n"
