"""The requests of each scenario."""

from __future__ import annotations

import itertools

import pytest

from loadtests.scenarios import SCENARIOS, Scenario, Turn
from loadtests.token_costs import TokenCosts


def some(scenario: Scenario, count: int = 60, seed: int = 1) -> list[Turn]:
    parameters = scenario.defaults.model_copy(update={"seed": seed})
    if scenario.arrivals is not None:
        return list(itertools.islice(scenario.arrivals(parameters, TokenCosts()), count))
    assert scenario.turns is not None
    return [
        t for u in range(10) for t in itertools.islice(scenario.turns(parameters, TokenCosts(), u), count // 10)
    ]


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda s: s.name)
def test_a_seed_determines_the_load(scenario: Scenario) -> None:
    turns = some(scenario)
    assert turns == some(scenario)
    assert turns != some(scenario, seed=2)
    low, high = scenario.defaults.output_tokens
    assert all(low <= turn.max_tokens <= high for turn in turns)
    times = [turn.at_s for turn in turns if turn.at_s is not None]
    assert times == sorted(times)
    assert bool(times) == scenario.open_loop
    assert {turn.model for turn in turns} == set(range(scenario.models))


def test_each_scenario_has_its_requests() -> None:
    rag = some(SCENARIOS["rag"], 20)
    assert all(4096 <= t.prompt_tokens <= 16384 + 8 for t in rag)
    assert all(len(t.text.split()) > 2000 for t in rag)
    chats = some(SCENARIOS["multiturn"])
    assert len({t.system for t in chats}) == 1
    assert [t.fresh for t in chats[:6]] == [True, False, False, False, False, False]
    cancels = some(SCENARIOS["cancels"], 1000)
    assert 0.05 < sum(t.cancel_after is not None for t in cancels) / 1000 < 0.15
    assert {t.kind for t in some(SCENARIOS["code"])} == {"completion"}
    burst = [t for t in some(SCENARIOS["n8n"], 40) if t.user == 0]
    assert len([t for t in burst if t.at_s == 0]) == 20
    assert not any(t.stream for t in burst)
    assert SCENARIOS["users100"].defaults.users == 100
    assert SCENARIOS["chats200"].defaults.users == 200
    assert SCENARIOS["soak"].defaults.duration_s == 3600
    swaps = some(SCENARIOS["swap"])
    assert [t.model for t in swaps[:6]] == [0, 0, 0, 1, 1, 1]
    poisson = some(SCENARIOS["poisson"], 2000)
    assert (poisson[-1].at_s or 0) == pytest.approx(1000, rel=0.1)
