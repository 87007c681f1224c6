"""Violations of engines that cannot start; sites of `--write` that are valid and fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.contract import load
from appliance.contract.model import Site
from appliance.errors import UsageError
from appliance.planner.demand import Demand
from appliance.planner.fit import fit
from appliance.planner.from_site import hardware_of, model_demands_of
from appliance.planner.placement import advise
from tests.planner.conftest import EXAMPLES

SWAP = next(path for path in EXAMPLES if path.stem == "one-card-swap")
CARD = "RTX PRO 6000 Blackwell Workstation"


def build(**changes: Any) -> Site:
    """Build a site with one Qwen3-30B-A3B on one card; ``changes`` apply to engine, options, model or host."""
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
def test_an_example_fits(path: Path) -> None:
    assert fit(load.load(path)) == []


def test_each_host_of_an_engine_needs_ram_for_its_part_of_the_offload() -> None:
    one = build(options={"kv-offloading-size": 64}).model_dump(mode="json")
    one["hosts"]["gpu"]["link"] = {"address": "10.88.0.1", "interface": "eno1"}
    link = {"address": "10.88.0.2", "interface": "eno1"}
    one["hosts"]["gpu2"] = {**one["hosts"]["gpu"], "link": link, "memory_gib": 64}
    one["engines"]["chat"] |= {"nodes": ["gpu", "gpu2"], "pipeline_parallel": 2, "gpus": [0, 0]}
    (found,) = fit(Site.model_validate_json(json.dumps(one)))
    # 64 GiB for both, counted twice: 64 on each.
    assert found.where == "hosts.gpu2.memory_gib"
    one["hosts"]["gpu2"]["memory_gib"] = 96
    assert fit(Site.model_validate_json(json.dumps(one))) == []


def test_a_card_and_its_model_fit() -> None:
    assert fit(build()) == []


@pytest.mark.parametrize(
    ("changes", "place", "what", "fix"),
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
            {"sleep": True, "residency": "on-demand", "ram": 48},
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
def test_an_engine_that_cannot_start_is_a_violation(
    changes: dict[str, Any], place: str, what: str, fix: str
) -> None:
    (violation,) = fit(build(**changes))
    assert place in violation.where
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
def test_an_unknown_model_card_or_engine_is_not_a_violation(changes: dict[str, Any]) -> None:
    assert fit(build(**changes)) == []


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    context=st.integers(1, 200_000),
    utilization=st.floats(0.05, 1.0),
    memory=st.integers(1, 300_000),
    tp=st.integers(1, 8),
)
def test_any_engine_gives_violations_of_one_line(context: int, utilization: float, memory: int, tp: int) -> None:
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
    with pytest.raises(UsageError, match=r"all at once; .* or let the models take turns"):
        advise(hardware_of(site), demand)
