"""The engines section of a plan, and its place in a site's file."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import parse
from appliance.contract import load
from appliance.contract.model import Site
from appliance.contract.rules import violations
from appliance.errors import ConfigError
from appliance.planner.candidates import find_candidates
from appliance.planner.demand import Demand
from appliance.planner.engines_section import engines_section, replace_engines
from appliance.planner.fit import fit
from appliance.planner.from_site import hardware_of, model_demands_of
from appliance.planner.placement import Placement, Plan, advise
from tests.planner.conftest import EXAMPLES, SERVER


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


GPUS = [{"index": index, "model": SERVER, "memory_mib": 97887} for index in (0, 1, 4, 5)]
SITE: dict[str, Any] = {
    "version": 1,
    "hosts": {
        "gpu": {"memory_gib": 64, "gpus": GPUS, "link": {"address": "10.88.0.1", "interface": "eno1"}},
        "gpu2": {"memory_gib": 64, "gpus": GPUS, "link": {"address": "10.88.0.2", "interface": "eno1"}},
    },
    "models": {"large": {"source": "./models/Qwen3-235B-A22B", "weights_gib": 438}},
    "engines": {
        "big": {
            "host": "gpu",
            "model": "large",
            "gpus": [0, 1, 4, 5],
            "tensor_parallel": 4,
            "context": 16384,
            "concurrency": 4,
            "port": 8101,
        }
    },
}


def planned(table: dict[str, Any]) -> tuple[Plan, Site]:
    site = Site.model_validate_json(json.dumps(table))
    demand = Demand(users=2, chats=2, think_s=60.0, models=model_demands_of(site, {}))
    return advise(hardware_of(site), demand).best, site


def written_over(table: dict[str, Any], plan: Plan, site: Site) -> Site:
    """Return ``table`` with the engines of ``plan``; its shape is valid, its rules are not checked."""
    engines = tomllib.loads(engines_section(plan, site))
    return Site.model_validate_json(json.dumps(table | engines))


def test_a_model_for_two_hosts_is_written_as_one_engine_with_nodes() -> None:
    plan, site = planned(SITE)
    assert plan.writable
    written = written_over(SITE, plan, site)
    (engine,) = written.engines.values()
    assert engine.nodes == ("gpu", "gpu2")
    assert (engine.host, engine.tensor_parallel, engine.pipeline_parallel) == ("gpu", 4, 2)
    assert engine.gpus == (0, 1, 4, 5, 0, 1, 4, 5)
    assert violations(written) == []
    assert fit(written) == []
    # A plan of the written site has both hosts again.
    assert {machine.name for machine in hardware_of(written)} == {"gpu", "gpu2"}


def test_the_host_of_the_old_engine_stays_the_first_node_and_keeps_its_ports() -> None:
    old = {
        "host": "gpu2", "nodes": ["gpu2", "gpu"], "model": "large", "tensor_parallel": 4, "pipeline_parallel": 2,
        "gpus": [0, 1, 4, 5, 0, 1, 4, 5], "context": 8192, "concurrency": 4, "port": 8300, "master_port": 29601,
        "skip_recipes": ["mtp"], "canary_timeout_s": 90,
    }  # fmt: skip
    table = SITE | {"engines": {"big": old}}
    plan, site = planned(table)
    engine = written_over(table, plan, site).engines["big"]
    assert engine.nodes == ("gpu2", "gpu")
    assert (engine.port, engine.master_port) == (8300, 29601)
    assert (engine.skip_recipes, engine.canary_timeout_s) == (("mtp",), 90)


def test_copies_over_hosts_are_engines_with_ports_of_their_own() -> None:
    four = {f"gpu{n}": {"memory_gib": 64, "gpus": GPUS, "link": {"address": f"10.88.0.{n}", "interface": "eno1"}}
            for n in range(1, 5)}  # fmt: skip
    table = SITE | {"hosts": four}
    plan, site = planned(table)
    written = written_over(table, plan, site)
    assert [engine.nodes for engine in written.engines.values()] == [("gpu1", "gpu2"), ("gpu3", "gpu4")]
    assert violations(written) == []
    place = plan.parts[0].places[0]
    both = dataclasses.replace(plan, parts=(dataclasses.replace(plan.parts[0], places=(place, place)),))
    ports = [engine.master_port for engine in written_over(table, both, site).engines.values()]
    assert ports == [29501, 29503]


def test_a_host_without_a_link_is_named_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    cards = "".join(f'  {{ index = {index}, model = "{SERVER}", memory_mib = 97887 }},\n' for index in (0, 1, 4, 5))
    text = 'version = 1\n\n[models.large]\nsource = "./models/Qwen3-235B-A22B"\n'
    for number, host in enumerate(("gpu", "gpu2")):
        text += f"\n[hosts.{host}]\nmemory_gib = 64\ngpus = [\n{cards}]\n"
        text += f'\n[engines.big{number}]\nhost = "{host}"\nmodel = "large"\ngpus = [0, 1, 4, 5]\n'
        text += "tensor_parallel = 4\ncontext = 8192\nconcurrency = 4\nport = 8101\n"
    path.write_text(text, "utf-8")
    arguments = parse(["plan", "--config", str(path), "--users", "1", "--chats", "1", "--simulate", "1", "--write"])
    with pytest.raises(ConfigError) as caught:
        arguments.run(arguments)
    assert "(not written): hosts.gpu.link: is missing, and engines.big0 spans it" in str(caught.value)
    assert path.read_text("utf-8") == text


def test_a_pipeline_on_one_host_is_written() -> None:
    table = SITE | {"models": {"large": {"source": "./models/Qwen3-32B"}}}
    site = Site.model_validate_json(json.dumps(table))
    model = model_demands_of(site, {})[0]
    machine = hardware_of(site)[0]
    demand = Demand(users=2, chats=2, think_s=60.0, models=(model,))
    chosen = next(
        one for one in find_candidates(model, machine, demand) if (one.layout.tp, one.layout.pp) == (2, 2)
    )
    part = Placement(candidate=chosen, places=((("gpu", (0, 1, 2, 3)),),), headroom=1.0, load=1.0, prediction=None)
    plan = Plan(parts=(part,), headroom=1.0, spare_cards=0, resilient=False)
    written = written_over(table, plan, site)
    (engine,) = written.engines.values()
    assert (engine.tensor_parallel, engine.pipeline_parallel, engine.gpus) == (2, 2, (0, 1, 4, 5))
    assert engine.nodes == ()
    assert violations(written) == []


def test_comments_and_other_tables_are_kept() -> None:
    text = "a = 1\n\n[engines.x]\nport = 1\n# about the port\n\n# The roles.\n[roles.r]\nmodel = 'm'\n"
    written = replace_engines(text, "[engines.y]\nport = 2\n")
    assert written.startswith("a = 1\n\n[engines.y]\nport = 2\n")
    assert written.endswith("# The roles.\n[roles.r]\nmodel = 'm'\n")
    assert "port = 1" not in written


def test_engines_are_appended_to_a_site_without_engines() -> None:
    assert replace_engines("version = 1\n", "[engines.a]\n") == "version = 1\n\n[engines.a]\n"
