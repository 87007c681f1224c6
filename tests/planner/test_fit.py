"""`fit` refuses what cannot start, and nothing else; `--write` gives a site that is valid and fits."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.contract import load
from appliance.contract.model import Site
from appliance.contract.rules import violations
from appliance.errors import UsageError
from appliance.planner.demand import Demand
from appliance.planner.engines_section import engines_section, replace_engines
from appliance.planner.fit import fit
from appliance.planner.from_site import hardware_of, model_demands_of
from appliance.planner.placement import advise

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))
SWAP = next(path for path in EXAMPLES if path.stem == "one-card-swap")
CARD = "RTX PRO 6000 Blackwell Workstation"


def build(**changes: Any) -> Site:
    """One card, one Qwen3-30B-A3B; ``changes`` are of the engine, its options, the model or the host."""
    cards = changes.pop("cards", [CARD])
    engine: dict[str, Any] = {
        "host": "gpu",
        "model": "chat",
        "gpus": list(range(len(cards))),
        "context": 32768,
        "concurrency": 64,
        "port": 8101,
    }
    model = {"source": changes.pop("source", "./models/Qwen3-30B-A3B"), **changes.pop("model", {})}
    gib = changes.pop("ram", 256)
    memory = changes.pop("memory_mib", 97887)
    table = {
        "version": 1,
        "hosts": {
            "gpu": {
                "memory_gib": gib,
                "gpus": [{"index": index, "model": name, "memory_mib": memory} for index, name in enumerate(cards)],
            }
        },
        "models": {"chat": model},
        "engines": {"chat": engine | changes},
    }
    return Site.model_validate_json(json.dumps(table))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_the_examples_fit(path: Path) -> None:
    assert fit(load.load(path)) == []


def test_a_card_and_its_model_fit() -> None:
    assert fit(build()) == []


@pytest.mark.parametrize(
    ("changes", "where", "what", "fix"),
    [
        ({"context": 60000}, "engines.chat.context", "more than the 40960", "set it to 40960 or less"),
        ({"source": "./Qwen3-235B-A22B"}, "engines.chat", "do not fit", "raise tensor_parallel to 8"),
        (
            {"gpu_memory_utilization": 0.65},
            "engines.chat",
            "one request of 32768 does not fit",
            "lower context to",
        ),
        (
            {"gpu_memory_utilization": 0.5},
            "engines.chat",
            "gpu_memory_utilization = 0.5",
            "tensor_parallel to 2",
        ),
        (
            {"cards": [CARD] * 3, "tensor_parallel": 3},
            "tensor_parallel",
            "does not divide the 32 heads",
            "nearest: 2",
        ),
        (
            {"source": "./Qwen3-235B-A22B-FP8", "cards": [CARD] * 8, "tensor_parallel": 8},
            "tensor_parallel",
            "blocks of 128",
            "nearest: 4",
        ),
        (
            {"cards": [CARD, "Radeon PRO W7900"], "tensor_parallel": 2},
            "engines.chat.gpus",
            "amd and nvidia",
            "one vendor",
        ),
        (
            {"options": {"enable-sleep-mode": True}, "ram": 48},
            "hosts.gpu.memory_gib",
            "pinned copies",
            "have",
        ),
        ({"options": {"kv-offloading-size": 64}, "ram": 96}, "hosts.gpu.memory_gib", "counted twice", "have"),
        (
            {"device": "cpu", "gpus": [], "kv_cache_gib": 10.0, "ram": 64},
            "hosts.gpu.memory_gib",
            "weights and KV cache in RAM",
            "have",
        ),
    ],
)
def test_what_cannot_start(changes: dict[str, Any], where: str, what: str, fix: str) -> None:
    (violation,) = fit(build(**changes))
    assert where in violation.where
    assert what in violation.what
    assert fix in violation.fix
    assert "\n" not in str(violation)


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "./models/tiny-qwen3"},
        {"cards": ["Some Future Card"]},
        {"kind": "mock", "source": "./Qwen3-235B-A22B"},
        {"kind": "llamacpp", "source": "./Qwen3-235B-A22B"},
        {"context": 60000, "model": {"max_context": 131072}},
    ],
)
def test_what_it_cannot_know_it_leaves_alone(changes: dict[str, Any]) -> None:
    assert fit(build(**changes)) == []


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    context=st.integers(1, 200_000),
    utilization=st.floats(0.05, 1.0),
    memory=st.integers(1, 300_000),
    tp=st.integers(1, 8),
)
def test_fit_answers_for_any_engine(context: int, utilization: float, memory: int, tp: int) -> None:
    site = build(
        context=context,
        gpu_memory_utilization=utilization,
        memory_mib=memory,
        cards=[CARD] * tp,
        tensor_parallel=tp,
    )
    assert all("\n" not in str(violation) for violation in fit(site))


def test_models_that_take_turns_fit_one_by_one_and_are_not_planned_together() -> None:
    site = load.load(SWAP)
    assert fit(site) == []
    demand = Demand(users=20, chats=40, think_s=60.0, models=model_demands_of(site, {}))
    with pytest.raises(UsageError, match=r"all at once; .* or let them take turns"):
        advise(hardware_of(site), demand)


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
    # What a person set on an engine stays.
    old = next(engine for engine in site.engines.values() if engine.options)
    new = next(engine for engine in written.engines.values() if engine.model == old.model)
    assert new.options == old.options
    assert path.read_text("utf-8").splitlines()[0] == text.splitlines()[0]


def test_comments_and_other_tables_stay() -> None:
    text = "a = 1\n\n[engines.x]\nport = 1\n# options inside go\n\n# The roles.\n[roles.r]\nmodel = 'm'\n"
    written = replace_engines(text, "[engines.y]\nport = 2\n")
    assert written.startswith("a = 1\n\n[engines.y]\nport = 2\n")
    assert written.endswith("# The roles.\n[roles.r]\nmodel = 'm'\n")
    assert "port = 1" not in written


def test_engines_are_appended_where_there_are_none() -> None:
    assert replace_engines("version = 1\n", "[engines.a]\n") == "version = 1\n\n[engines.a]\n"


def test_shares_of_roles_and_models() -> None:
    site = load.load(next(path for path in EXAMPLES if path.stem.startswith("eight")))
    demands = model_demands_of(site, {"planner": 0.2, "coder": 0.5})
    shares = {demand.name: demand.share for demand in demands}
    assert shares == pytest.approx({"qwen3-235b": 0.2, "qwen3-30b": 0.5, "qwen3-embed": 0.3})
    with pytest.raises(UsageError, match=r"did you mean 'planner'"):
        model_demands_of(site, {"planer": 0.2})
    with pytest.raises(UsageError, match=r"shares add up to 1\.4"):
        model_demands_of(site, {"planner": 0.7, "coder": 0.7})
