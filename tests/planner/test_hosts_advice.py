"""The lines of the plan about replicas and engines over several hosts."""

from __future__ import annotations

from appliance.planner.across_hosts import hosts_advice, prefer_one_host
from appliance.planner.candidates import Candidate, find_candidates
from tests.planner.conftest import SERVER, MakeMachine, MakeModel, demand_for

LARGE = "Qwen/Qwen3-235B-A22B"


def on_cards(
    model_demand: MakeModel, machine: MakeMachine, model: str, cards: int, machines: int = 2
) -> list[Candidate]:
    one = model_demand(model)
    host = machine(f"{cards}x {SERVER}", 64)
    found = find_candidates(one, host, demand_for(one), machines=machines)
    return [candidate for candidate in found if candidate.kind == "cards"]


def test_a_model_that_fits_one_host_gets_replicas(model_demand: MakeModel, machine: MakeMachine) -> None:
    found = on_cards(model_demand, machine, "Qwen/Qwen3-30B-A3B", 4)
    single = next(one for one in found if one.layout.cards_per_replica == 1)
    four = next(one for one in found if one.layout.tp == 4 and one.layout.hosts == 1)
    lines = list(hosts_advice([single, four], [machine(), machine()]))
    assert lines[0].startswith("Qwen3-30B-A3B fits one card: replicas on each host")
    assert lines[1].startswith("Qwen3-30B-A3B fits 4 cards of one host: replicas on each host")


def test_a_larger_model_gets_a_pipeline_between_the_hosts(model_demand: MakeModel, machine: MakeMachine) -> None:
    found = on_cards(model_demand, machine, LARGE, 4)
    (line,) = hosts_advice(found, [machine(), machine()])
    assert line == (
        "Qwen3-235B-A22B exceeds the cards of one host: 438 GiB of weights and the KV cache of 16384 tokens do not "
        "fit 4 x 96 GiB. So no host can have a replica. One engine with nodes over 2 hosts: pipeline_parallel = 2, "
        "tensor_parallel = 4. The loss of a host stops it."
    )


def test_an_engine_over_hosts_is_a_choice_only_if_no_host_holds_the_model(
    model_demand: MakeModel, machine: MakeMachine
) -> None:
    eight = on_cards(model_demand, machine, LARGE, 8)
    assert {one.layout.hosts for one in eight} == {1, 2}
    assert {one.layout.hosts for one in prefer_one_host(eight)} == {1}
    four = on_cards(model_demand, machine, LARGE, 4)
    assert prefer_one_host(four) == four != []


def test_one_machine_has_no_choice(model_demand: MakeModel, machine: MakeMachine) -> None:
    found = on_cards(model_demand, machine, LARGE, 8, machines=1)
    assert not list(hosts_advice(found, [machine()]))
