"""Recommendations a person would make too, within the time the issue allows."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import UsageError
from appliance.planner import host_ram
from appliance.planner.demand import Demand
from appliance.planner.hardware import HardwareSpec, parse_cards
from appliance.planner.models import ModelDemand, split_shares
from appliance.planner.placement import advise
from appliance.planner.what_if import changes

PRO, SERVER = "RTX PRO 6000 Blackwell Workstation", "RTX PRO 6000 Blackwell Server"

MakeModel = Callable[..., ModelDemand]
MakeMachine = Callable[..., HardwareSpec]


def demand_for(*models: ModelDemand, users: int = 100, chats: int = 200) -> Demand:
    return Demand(users=users, chats=chats, think_s=60.0, models=models)


def test_two_cards_and_one_small_model_are_two_copies(model_demand: MakeModel, machine: MakeMachine) -> None:
    embed = model_demand("Qwen/Qwen3-Embedding-0.6B", 0.2)
    best = advise((machine(f"2x {PRO}"),), demand_for(model_demand(share=0.8), embed)).best
    assert [(part.replicas, part.candidate.title) for part in best.parts] == [(2, "single card"), (1, "CPU")]
    assert best.headroom > 1.5


def test_a_235b_on_eight_cards_leaves_room_for_agents(model_demand: MakeModel, machine: MakeMachine) -> None:
    planner = model_demand("Qwen/Qwen3-235B-A22B-Instruct-2507:fp8", 0.15, context=65536, name="planner")
    advice = advise((machine(f"8x {SERVER}", 512),), demand_for(planner, model_demand(share=0.85, name="coder")))
    assert {part.candidate.model.name: part.candidate.title for part in advice.best.parts} == {
        "planner": "TP4",
        "coder": "single card",
    }
    assert sum(part.candidate.cards * part.replicas for part in advice.best.parts) == 8
    assert len(advice.alternatives) > 2
    assert all(what for _, what in advice.alternatives)
    assert any("per card" in reason for reason in advice.reasons)


def test_a_235b_on_one_card_goes_to_ram(model_demand: MakeModel, machine: MakeMachine) -> None:
    best = advise((machine(),), demand_for(model_demand("Qwen/Qwen3-235B-A22B"), users=2, chats=2)).best
    assert best.parts[0].candidate.kind == "experts in RAM"


def test_an_amd_card_takes_the_embeddings_through_vulkan(model_demand: MakeModel, machine: MakeMachine) -> None:
    mixed = machine(f"1x {PRO}, 1x Radeon RX 7900 XTX", 64)
    embed = model_demand("Qwen/Qwen3-Embedding-8B", 0.5)
    best = advise((mixed,), demand_for(model_demand(share=0.5), embed)).best
    assert [part.candidate.kind for part in best.parts] == ["cards", "vulkan"]


def test_several_machines_hold_replicas(model_demand: MakeModel, machine: MakeMachine) -> None:
    many = tuple(machine(name=f"m{number}") for number in range(8))
    best = advise(many, demand_for(model_demand())).best
    assert best.parts[0].replicas == 8
    assert {where for where, _ in best.parts[0].places} == {f"m{number}" for number in range(8)}


def test_a_model_too_large_for_one_machine_spans_two(model_demand: MakeModel, machine: MakeMachine) -> None:
    pair = tuple(machine(f"4x {SERVER}", 64, name=f"m{number}") for number in range(2))
    best = advise(pair, demand_for(model_demand("Qwen/Qwen3-235B-A22B"), users=1, chats=1)).best
    assert best.parts[0].candidate.layout.hosts == 2
    assert not best.writable


def test_what_does_not_fit_names_what_would(model_demand: MakeModel, machine: MakeMachine) -> None:
    with pytest.raises(UsageError, match="nearest that fits: Qwen/Qwen3-32B in fp8"):
        advise((machine("1x RTX A6000"),), demand_for(model_demand("Qwen/Qwen3-32B")))
    with pytest.raises(UsageError, match=r"nearest that fits: [248] cards"):
        advise((machine("1x RTX 3090", 64),), demand_for(model_demand("meta-llama/Llama-3.3-70B-Instruct")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"users": 0}, "users = 0 makes no sense; nearest valid value: 1"),
        ({"chats": -5}, "chats = -5"),
        ({"chats": 10**9}, "nearest valid value: 1e+06"),
    ],
)
def test_absurd_demands(model_demand: MakeModel, machine: MakeMachine, changes: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        advise((machine(),), demand_for(model_demand(), **changes))
    assert words in str(caught.value)


def test_shares_context_and_machines_must_make_sense(model_demand: MakeModel, machine: MakeMachine) -> None:
    for demand, where in (
        (demand_for(model_demand(share=0.4)), "shares add up to 0.4"),
        (demand_for(model_demand(context=50000)), "nearest: 40960"),
        (demand_for(model_demand(context=1000)), "nearest: context 2400"),
        (demand_for(), "no model is asked for"),
    ):
        with pytest.raises(UsageError, match=where):
            advise((machine(),), demand)
    with pytest.raises(UsageError, match="nearest valid: 8 per machine"):
        advise((machine(f"9x {PRO}"),), demand_for(model_demand()))
    with pytest.raises(UsageError, match="nearest valid value: 8"):
        advise(tuple(machine(name=f"m{number}") for number in range(9)), demand_for(model_demand()))


@pytest.mark.parametrize("text", ["0x RTX 5090", "-1x RTX 5090", "65x RTX 5090", "", "2x Voodoo"])
def test_cards_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        parse_cards(text)


def test_eight_cards_and_five_models_within_two_seconds(model_demand: MakeModel, machine: MakeMachine) -> None:
    models = (
        model_demand("Qwen/Qwen3-235B-A22B:fp8", 0.1, context=32768),
        model_demand("Qwen/Qwen3-Coder-30B-A3B-Instruct", 0.4),
        model_demand("Qwen/Qwen3-14B", 0.2),
        model_demand("Qwen/Qwen3-VL-30B-A3B-Instruct", 0.1),
        model_demand("Qwen/Qwen3-Embedding-0.6B", 0.2),
    )
    start = time.process_time()
    advice = advise((machine(f"8x {SERVER}", 512),), demand_for(*models))
    assert time.process_time() - start < 2.0
    assert len(advice.best.parts) == 5


def test_a_second_card_and_the_power_limit_are_answered(model_demand: MakeModel, machine: MakeMachine) -> None:
    found = {change.what: change.plan for change in changes((machine(),), demand_for(model_demand()))}
    assert set(found) == {f"a further {PRO}", "300 W per card", "450 W per card", "512 GiB of RAM"}
    one = advise((machine(),), demand_for(model_demand())).best
    second, weak = found[f"a further {PRO}"], found["300 W per card"]
    assert second is not None
    assert second.headroom > 1.8 * one.headroom
    assert weak is not None
    assert weak.headroom < one.headroom


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(count=st.integers(1, 8), chats=st.integers(1, 2000), chosen=st.sets(st.integers(0, 3), min_size=1))
def test_no_card_is_given_twice(
    model_demand: MakeModel, machine: MakeMachine, count: int, chats: int, chosen: set[int]
) -> None:
    pool = ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-32B", "Qwen/Qwen3-8B", "Qwen/Qwen3-Embedding-0.6B")
    models = [model_demand(pool[number], 1 / len(chosen)) for number in sorted(chosen)]
    try:
        best = advise((machine(f"{count}x {PRO}"),), demand_for(*models, chats=chats)).best
    except UsageError:
        return
    used = [card for part in best.parts for _, where in part.places for card in where]
    assert len(used) == len(set(used))
    assert len(used) + best.spare_cards == count


def test_ram_counts_offload_twice_and_sleep_once() -> None:
    plain = host_ram.EngineRam(cards=1, weights=60e9)
    assert host_ram.EngineRam(cards=1, weights=60e9, sleeps=True).total == plain.total + 60e9
    assert host_ram.EngineRam(cards=1, weights=60e9, offload=10e9).total == plain.total + 20e9
    account = host_ram.account(64, [plain], tmpfs_gib=60, hugepages_gib=10)
    assert not account.fits
    assert account.biggest == "models in tmpfs"
    assert host_ram.account(128, [plain]).fits


@pytest.mark.parametrize(
    ("stated", "shares"),
    [
        ({}, {"chat": 0.45, "code": 0.45, "embed": 0.1}),
        ({"chat": 0.6}, {"chat": 0.6, "code": 0.36, "embed": 0.04}),
        ({"embed": 0.2}, {"chat": 0.4, "code": 0.4, "embed": 0.2}),
        ({"chat": 0.5, "code": 0.3}, {"chat": 0.5, "code": 0.3, "embed": 0.2}),
        ({"chat": 0.5, "code": 0.3, "embed": 0.2}, {"chat": 0.5, "code": 0.3, "embed": 0.2}),
    ],
)
def test_what_nobody_stated_goes_to_the_models_that_chat(
    stated: dict[str, float], shares: dict[str, float]
) -> None:
    assert split_shares({"chat": False, "code": False, "embed": True}, stated) == pytest.approx(shares)
