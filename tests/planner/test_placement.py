"""Recommendations that an expert would also make, and the time that they take."""

from __future__ import annotations

import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import UsageError
from appliance.planner.placement import advise, enumerate_plans
from tests.planner.conftest import PRO, SERVER, MakeMachine, MakeModel, demand_for


def test_two_cards_run_two_copies_of_a_small_model(model_demand: MakeModel, machine: MakeMachine) -> None:
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


def test_a_235b_on_one_card_has_its_experts_in_ram(model_demand: MakeModel, machine: MakeMachine) -> None:
    best = advise((machine(),), demand_for(model_demand("Qwen/Qwen3-235B-A22B"), users=2, chats=2)).best
    assert best.parts[0].candidate.kind == "experts in RAM"


def test_an_amd_card_runs_the_embeddings_through_vulkan(model_demand: MakeModel, machine: MakeMachine) -> None:
    mixed = machine(f"1x {PRO}, 1x Radeon RX 7900 XTX", 64)
    embed = model_demand("Qwen/Qwen3-Embedding-8B", 0.5)
    best = advise((mixed,), demand_for(model_demand(share=0.5), embed)).best
    assert [part.candidate.kind for part in best.parts] == ["cards", "vulkan"]


def test_several_machines_hold_replicas(model_demand: MakeModel, machine: MakeMachine) -> None:
    many = tuple(machine(name=f"m{number}") for number in range(8))
    best = advise(many, demand_for(model_demand())).best
    assert best.parts[0].replicas == 8
    assert {name for place in best.parts[0].places for name, _ in place} == {f"m{number}" for number in range(8)}


def test_a_model_too_large_for_one_machine_spans_two(model_demand: MakeModel, machine: MakeMachine) -> None:
    pair = tuple(machine(f"4x {SERVER}", 64, name=f"m{number}") for number in range(2))
    advice = advise(pair, demand_for(model_demand("Qwen/Qwen3-235B-A22B"), users=1, chats=1))
    (part,) = advice.best.parts
    assert part.candidate.layout.hosts == 2
    assert part.places == ((("m0", (0, 1, 2, 3)), ("m1", (0, 1, 2, 3))),)
    assert any("438 GiB of weights" in reason and "nodes over 2 hosts" in reason for reason in advice.reasons)


def test_no_engine_spans_machines_if_one_holds_the_model(model_demand: MakeModel, machine: MakeMachine) -> None:
    pair = tuple(machine(name=f"m{number}") for number in range(2))
    plans = enumerate_plans(pair, demand_for(model_demand()))
    assert plans
    assert {part.candidate.layout.hosts for plan in plans for part in plan.parts} == {1}


def test_eight_cards_and_five_models_take_at_most_two_seconds(
    model_demand: MakeModel, machine: MakeMachine
) -> None:
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(count=st.integers(1, 8), chats=st.integers(1, 2000), chosen=st.sets(st.integers(0, 3), min_size=1))
def test_no_card_is_assigned_twice(
    model_demand: MakeModel, machine: MakeMachine, count: int, chats: int, chosen: set[int]
) -> None:
    pool = ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-32B", "Qwen/Qwen3-8B", "Qwen/Qwen3-Embedding-0.6B")
    models = [model_demand(pool[number], 1 / len(chosen)) for number in sorted(chosen)]
    try:
        best = advise((machine(f"{count}x {PRO}"),), demand_for(*models, chats=chats)).best
    except UsageError:
        return
    used = [card for part in best.parts for place in part.places for _, indices in place for card in indices]
    assert len(used) == len(set(used))
    assert len(used) + best.spare_cards == count
