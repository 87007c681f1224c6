"""The simulation against results of queueing theory, and its determinism."""

from __future__ import annotations

import time
from math import factorial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import UsageError
from appliance.planner import simulation
from appliance.planner.simulation import (
    OfferedLoad,
    SimulatedEngine,
    Simulation,
    breaking_point,
    chats_at_capacity,
    simulate,
)


def engine(slots: int = 64, replicas: int = 2, tpot: float = 0.01, slope: float = 5e-4) -> SimulatedEngine:
    table = tuple(tpot + slope * running for running in range(slots + 1))
    return SimulatedEngine(replicas=replicas, slots=slots, tpot_s=table, prefill_s_per_token=2e-5, first_s=0.02)


def test_the_same_seed_gives_the_same_outcome() -> None:
    load = OfferedLoad(pattern="n8n", rate=0.5)
    assert simulate(engine(), load, 5000, seed=7) == simulate(engine(), load, 5000, seed=7)
    assert simulate(engine(), load, 5000, seed=7) != simulate(engine(), load, 5000, seed=8)


def test_one_slot_has_the_waiting_times_of_m_m_1() -> None:
    # One server, responses of 100 tokens at 10 ms: 1 s of service; at half load the mean wait is 1 s.
    one = SimulatedEngine(replicas=1, slots=1, tpot_s=(0.01, 0.01), prefill_s_per_token=0.0, first_s=0.0)
    load = OfferedLoad(chats=0, users=0, pattern="poisson", rate=0.5, prompt=2, response=100)
    outcome = simulate(one, load, 200_000)
    # P(wait > t) = 0.5 exp(-t / 2): the 95th percentile is 2 ln 10.
    assert outcome.ttft[1] == pytest.approx(4.605, rel=0.08)
    assert outcome.ttft[0] == pytest.approx(0.0, abs=0.05)


def test_littles_law_holds_for_a_closed_population() -> None:
    # 200 chats think 60 s and are served in about 400 x 15 ms: the cycle determines the rate.
    outcome = simulate(engine(), OfferedLoad(), 20_000)
    cycle = 200 / (outcome.requests / outcome.seconds)
    assert cycle == pytest.approx(60 + outcome.ttft[0] + 400 * outcome.tpot[0], rel=0.03)


def test_sharing_one_processor_follows_the_machine_repair_formula() -> None:
    # Each of n running requests is n times slower: 1 s of service shared by 8 chats that think 5 s.
    chats, think, service = 8, 5.0, 1.0
    table = tuple(0.01 * max(1, running) for running in range(chats + 1))
    shared = SimulatedEngine(replicas=1, slots=chats, tpot_s=table, prefill_s_per_token=0.0, first_s=0.0)
    outcome = simulate(shared, OfferedLoad(chats=chats, think_s=think, prompt=2, response=100), 100_000)
    weights = [factorial(chats) / factorial(chats - k) * (service / think) ** k for k in range(chats + 1)]
    busy = 1.0 - weights[0] / sum(weights)
    assert outcome.requests / outcome.seconds == pytest.approx(busy / service, rel=0.02)


@settings(max_examples=20, deadline=None)
@given(st.integers(20, 400), st.integers(1, 4))
def test_more_chats_never_wait_less(chats: int, seed: int) -> None:
    small = engine(slots=16, replicas=1)
    few = simulate(small, OfferedLoad(chats=chats), 4000, seed=seed)
    many = simulate(small, OfferedLoad(chats=chats * 3), 4000, seed=seed)
    assert many.ttft[1] >= few.ttft[1] * 0.9
    assert few.chats_inside <= chats
    assert few.users_inside <= 100


def test_a_response_ends_in_time_while_other_prompts_are_prefilled() -> None:
    slow_prompts = SimulatedEngine(replicas=2, slots=8, tpot_s=(0.01,) * 9, prefill_s_per_token=1e-3, first_s=1.0)
    outcome = simulate(slow_prompts, OfferedLoad(chats=30, think_s=5.0), 500)
    assert outcome.tpot == pytest.approx((0.01, 0.01, 0.01))


def test_batches_wait_longer_than_a_stream_of_the_same_rate() -> None:
    stream = simulate(engine(), OfferedLoad(pattern="poisson", rate=2.0), 20_000)
    for pattern in ("bursts", "n8n"):
        batches = simulate(engine(), OfferedLoad(pattern=pattern, rate=2.0, batch=40), 20_000)
        assert batches.ttft[2] > stream.ttft[2]


def test_the_breaking_point_separates_loads_within_the_slo_from_others() -> None:
    small = engine(slots=16, replicas=1)
    chats = breaking_point(small, OfferedLoad())
    assert simulate(small, OfferedLoad(chats=int(chats * 0.8)), 6000).requests_inside >= 0.95
    assert simulate(small, OfferedLoad(chats=int(chats * 1.3)), 6000).requests_inside < 0.95


def test_the_trials_near_the_capacity_do_not_change_the_breaking_point(monkeypatch: pytest.MonkeyPatch) -> None:
    automated = OfferedLoad(chats=50, pattern="n8n", rate=0.5)
    cases = [(engine(slots, replicas), load) for slots, replicas in ((2, 1), (16, 1), (48, 3)) for load in
             (OfferedLoad(), OfferedLoad(chats=3, think_s=10.0), automated)]  # fmt: skip
    found = [breaking_point(one, load, requests=800) for one, load in cases]
    assert len(set(found)) > 6
    monkeypatch.setattr(simulation, "PROBED", ())
    assert found == [breaking_point(one, load, requests=800) for one, load in cases]


def test_the_capacity_follows_littles_law() -> None:
    # 16 requests of 400 tokens at 18 ms, with 20 ms before the first and 40 ms of prefill: 7.26 s each.
    load = OfferedLoad(think_s=60.0)
    chats = chats_at_capacity(engine(slots=16, replicas=2), load, 0.1)
    assert chats == pytest.approx(2 * 16 / 7.26 * (60.0 + 7.26))
    # Within 13 ms per token only six of them run.
    assert chats_at_capacity(engine(slots=16, replicas=2), load, 0.0131) == pytest.approx(2 * 6 / 5.26 * 65.26)
    assert chats_at_capacity(engine(), load, 0.001) == 0.0


def test_an_overloaded_engine_has_no_chat_within_the_slo() -> None:
    outcome = simulate(engine(slots=2, replicas=1), OfferedLoad(chats=400), 5000)
    assert outcome.chats_inside == 0
    assert outcome.users_inside == 0
    assert 300 < outcome.longest_queue <= 400


def test_a_million_requests_take_under_a_minute() -> None:
    start = time.process_time()
    outcome = simulate(engine(), OfferedLoad(pattern="poisson", rate=1.0), 100_000)
    assert outcome.requests == 100_000
    assert (time.process_time() - start) * 10 < 60


@pytest.mark.parametrize("requests", [0, -1, 10**9])
def test_a_number_of_requests_out_of_range_is_rejected(requests: int) -> None:
    with pytest.raises(UsageError, match="nearest valid"):
        simulate(engine(), OfferedLoad(), requests)


def test_a_load_without_requests_is_rejected() -> None:
    with pytest.raises(UsageError, match="no load given"):
        simulate(engine(), OfferedLoad(chats=0), 10)


def test_a_million_chats_take_few_events() -> None:
    """Count events instead of seconds: a trial ends once it has failed, arrivals once the queue is full."""
    crowd = OfferedLoad(chats=1_000_000, pattern="n8n", rate=3000.0)
    run = Simulation(engine(), crowd, 5000)
    steps = 0
    while not run.complete:
        run.advance(1)
        steps += 1
    assert run.done == 5000
    assert steps < 40_000
    assert run.outcome().longest_queue >= 5000
    failed = Simulation(engine(), crowd, 120_000)
    steps = 0
    while not failed.will_miss(6000):
        failed.advance(1)
        steps += 1
    assert steps < 60_000


def test_a_trial_within_the_slo_does_not_fail() -> None:
    run = Simulation(engine(), OfferedLoad(chats=4), 2000, ttft_slo_s=60.0, tpot_slo_s=10.0)
    while not run.complete:
        run.advance(1)
        assert not run.will_miss(100)
    assert run.outcome().requests_inside == 1.0
