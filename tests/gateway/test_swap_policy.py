"""The swap policy: within memory, without thrash, without starvation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from appliance.contract.model import Swap
from appliance.gateway.swap_policy import (
    RETRY_S,
    EngineState,
    LoadEngine,
    UnloadEngine,
    Wait,
    decide,
    fits,
    wait_ends,
)

RULES = Swap(max_wait_s=30, min_residency_s=20, batch=8)
CARD = {"here/0": 1.0}
NINE = {"here/0": 0.9}


def ready(name: str = "a", **more: object) -> EngineState:
    return replace(EngineState(name, "ready", 0.0, NINE), **more)  # type: ignore[arg-type]


def stopped(name: str = "b", **more: object) -> EngineState:
    return replace(EngineState(name, "stopped", 0.0, NINE), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("swapped_s", "swap_until", "ends"),
    [
        (0.0, None, 130.0),  # No swap yet: the queue's own bound.
        (0.0, 700.0, 700.0),  # A swap begins.
        (550.0, 700.0, 700.0),  # Later in the same swap: its deadline does not move.
        (0.0, 110.0, 110.0),  # A swap shorter than the queue's bound.
        (570.0, None, 700.0),  # It has ended: the rest of the queue's bound counts again.
        (570.0, 900.0, 900.0),  # Another swap to the same model.
    ],
)
def test_when_a_wait_ends(swapped_s: float, swap_until: float | None, ends: float) -> None:
    assert wait_ends(10.0, 120.0, swapped_s, swap_until) == ends


def test_a_model_without_requests_is_not_loaded() -> None:
    assert decide([ready(), stopped()], CARD, RULES, 100) == Wait()


@pytest.mark.parametrize("wanted", [None, "b"])
def test_a_drained_engine_is_not_loaded(wanted: str | None) -> None:
    drained = stopped(waiting=1, oldest=5.0, drained=True)
    assert decide([drained], CARD, RULES, 500, wanted=wanted) == Wait()
    assert decide([drained, stopped("c", waiting=1, oldest=6.0)], CARD, RULES, 500, wanted=wanted) == LoadEngine(
        "c"
    )


def test_a_drained_engine_makes_room() -> None:
    engines = [ready(drained=True), stopped(waiting=1, oldest=90.0)]
    assert decide(engines, CARD, RULES, 100) == LoadEngine("b", ("a",))


def test_a_free_card_is_used_at_once() -> None:
    assert decide([stopped(waiting=1, oldest=5.0)], CARD, RULES, 5) == LoadEngine("b")


def test_a_model_that_fits_is_loaded_without_victims() -> None:
    half = {"here/0": 0.4}
    engines = [ready(awake=half, in_flight=3), stopped(awake=half, waiting=1, oldest=1.0)]
    assert decide(engines, CARD, RULES, 1) == LoadEngine("b")


@pytest.mark.parametrize(
    ("resident", "now", "expected"),
    [
        ({}, 10, Wait(20.0)),  # It stays for its residency, even if it is idle.
        ({}, 20, LoadEngine("b", ("a",))),  # Idle: it is unloaded after its residency.
        ({"in_flight": 1}, 25, Wait(35.0)),  # Used: until the other one has waited long enough.
        ({"in_flight": 1}, 35, LoadEngine("b", ("a",))),
        ({"in_flight": 1, "begun": 8}, 25, LoadEngine("b", ("a",))),  # Its batch is complete.
        ({"waiting": 5, "oldest": 0.0, "begun": 7}, 25, Wait(35.0)),
        ({"on_demand": False}, 999, Wait()),  # Never a victim.
    ],
)
def test_when_the_loaded_model_is_unloaded(
    resident: dict[str, Any], now: float, expected: LoadEngine | Wait
) -> None:
    engines = [ready(**resident), stopped(waiting=2, oldest=5.0)]
    assert decide(engines, CARD, RULES, now) == expected


def test_an_operators_request_ignores_residency_and_batch() -> None:
    assert decide([ready(in_flight=4), stopped()], CARD, RULES, 1, wanted="b") == LoadEngine("b", ("a",))


def test_a_failed_load_is_retried_later_or_by_an_operator() -> None:
    failed = stopped(state="failed", since=100.0, waiting=1, oldest=90.0)
    assert decide([failed], CARD, RULES, 110) == Wait(100 + RETRY_S)
    assert decide([failed], CARD, RULES, 100 + RETRY_S) == LoadEngine("b")
    assert decide([failed], CARD, RULES, 110, wanted="b") == LoadEngine("b")


def test_sleeping_engines_occupy_memory_and_the_least_used_one_is_unloaded() -> None:
    small, asleep = {"here/0": 0.45}, {"here/0": 0.05}
    engines = [
        ready("old", awake=small, asleep=asleep, last_used=1.0),
        ready("new", awake=small, asleep=asleep, last_used=50.0),
        stopped("c", awake=small, waiting=1, oldest=60.0),
    ]
    assert decide(engines, CARD, RULES, 60) == LoadEngine("c", ("old",))
    tight = replace(engines[2], awake={"here/0": 0.52})
    assert decide([*engines[:2], tight], CARD, RULES, 60) == LoadEngine("c", ("old", "new"))


def test_no_engine_is_unloaded_needlessly() -> None:
    """The small one is unused for longer and does not suffice; the large one alone does."""
    engines = [
        ready("small", awake={"here/0": 0.2}, last_used=1.0),
        ready("large", awake={"here/0": 0.7}, last_used=50.0),
        stopped("c", awake={"here/0": 0.6}, waiting=1, oldest=60.0),
    ]
    assert decide(engines, CARD, RULES, 60) == LoadEngine("c", ("large",))


def test_one_transition_at_a_time() -> None:
    engines = [ready(state="draining"), stopped(waiting=1, oldest=0.0)]
    assert decide(engines, {"here/0": 9.0}, RULES, 999) == Wait()


class SwapMachine(RuleBasedStateMachine):
    """Requests for three models on one card, with slow and failing loads: within memory and without starvation."""

    MAX_RUN_S = 5.0
    MAX_LOAD_S = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        shares = {"a": 0.9, "b": 0.5, "c": 0.4}
        self.engines = {
            n: EngineState(n, "stopped", 0.0, {"here/0": s}, priority=3 * (n == "c")) for n, s in shares.items()
        }
        self.waits: dict[str, list[float]] = {name: [] for name in shares}
        self.waited = 0.0
        self.loads: list[tuple[float, str]] = []

    def set(self, name: str, **more: object) -> None:
        self.engines[name] = replace(self.engines[name], **more)  # type: ignore[arg-type]

    @rule(name=st.sampled_from("abc"))
    def request(self, name: str) -> None:
        engine = self.engines[name]
        if engine.state == "ready":
            others = any(self.waits[other] for other in self.waits if other != name)
            self.set(name, last_used=self.now, begun=engine.begun + 1 if others else 0)
        else:
            self.waits[name].append(self.now)
            self.set(name, waiting=len(self.waits[name]), oldest=self.waits[name][0])

    @rule(seconds=st.floats(0.1, 30), fails=st.booleans())
    def time_passes(self, seconds: float, fails: bool) -> None:
        end = self.now + seconds
        while True:
            step = decide([*self.engines.values()], CARD, RULES, self.now)
            if isinstance(step, LoadEngine):
                self.act(step, fails)
                continue
            assert isinstance(step, Wait), "no time for unused engines is set"
            if step.until is None or step.until >= end:
                break
            assert step.until > self.now, "time passes before the next decision"
            self.now = step.until
        self.now = max(self.now, end)

    def act(self, step: LoadEngine, fails: bool) -> None:
        for victim in step.victims:
            assert self.now - self.engines[victim].since >= RULES.min_residency_s - 1e-6
            self.set(victim, state="draining")
        assert decide([*self.engines.values()], CARD, RULES, self.now) == Wait() or not step.victims
        self.now += self.MAX_RUN_S * bool(step.victims)
        for victim in step.victims:
            self.set(victim, state="stopped", since=self.now)
        self.set(step.name, state="loading", since=self.now)
        assert fits([*self.engines.values()], CARD), "over the card's memory"
        self.now += self.MAX_LOAD_S
        # A model whose loads fail would starve without an error of the policy: only `a` fails here.
        if fails and step.name == "a":
            self.set("a", state="failed", since=self.now, waiting=0, oldest=None)
            self.waits["a"] = []
            for victim in step.victims:
                self.set(victim, state="ready", since=self.now)
            return
        self.waited = max([self.waited, *(self.now - since for since in self.waits[step.name])])
        self.waits[step.name] = []
        self.set(step.name, state="ready", since=self.now, waiting=0, oldest=None, begun=0)
        self.loads.append((self.now, step.name))

    @invariant()
    def memory_holds(self) -> None:
        assert fits([*self.engines.values()], CARD)

    @invariant()
    def no_request_starves(self) -> None:
        # Each of the two others may have one turn before: its residency or the wait, a drain and a load.
        turn = max(RULES.max_wait_s, RULES.min_residency_s) + self.MAX_RUN_S + self.MAX_LOAD_S
        pending = [self.now - since for name, waits in self.waits.items() for since in waits if name != "a"]
        assert max([self.waited, *pending], default=0.0) <= 3 * turn + RETRY_S

    @invariant()
    def no_thrash(self) -> None:
        for (first, one), (second, other) in zip(self.loads, self.loads[1:], strict=False):
            if one != other and {one, other} & {"a"}:
                assert second - first >= RULES.min_residency_s


TestMachine = SwapMachine.TestCase
TestMachine.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


# Loads without a request, and unloads.

LEISURE = Swap(max_wait_s=30, min_residency_s=20, batch=8, default="d", return_s=60, unload_idle_s=600)


def default_engine(**more: object) -> EngineState:
    return stopped("d", default=True, **more)


@pytest.mark.parametrize(
    ("engines", "now", "expected"),
    [
        ([default_engine(), stopped()], 0, LoadEngine("d")),  # At the start.
        ([ready(last_used=100.0), default_engine()], 130, Wait(160.0)),  # Another model was used a moment ago.
        ([ready(last_used=100.0), default_engine()], 160, LoadEngine("d", ("a",))),
        ([ready(since=155.0, last_used=10.0), default_engine()], 200, Wait(215.0)),  # Just loaded, not yet used.
        ([ready(last_used=100.0, in_flight=1), default_engine()], 900, Wait()),  # Used: no load without a request.
        ([default_engine(state="failed", since=100.0)], 130, Wait(100 + RETRY_S)),
        ([default_engine(drained=True)], 900, Wait()),
        ([ready("d", default=True), stopped(waiting=1, oldest=50.0)], 60, LoadEngine("b", ("d",))),
        ([ready("d", default=True)], 9000, Wait()),  # The default is never unloaded without a request.
    ],
)
def test_the_site_returns_to_its_default_model(
    engines: list[EngineState], now: float, expected: LoadEngine | Wait
) -> None:
    assert decide(engines, CARD, LEISURE, now) == expected


@pytest.mark.parametrize(
    ("more", "now", "expected"),
    [
        ({"last_used": 100.0}, 699, Wait(700.0)),
        ({"last_used": 100.0}, 700, UnloadEngine("a")),
        ({"since": 400.0, "last_used": 100.0}, 700, Wait(1000.0)),
        ({"last_used": 100.0, "in_flight": 1}, 5000, Wait()),
        ({"last_used": 100.0, "waiting": 1}, 5000, Wait()),
        ({"last_used": 100.0, "on_demand": False}, 5000, Wait()),
    ],
)
def test_an_unused_model_is_unloaded(more: dict[str, Any], now: float, expected: UnloadEngine | Wait) -> None:
    assert decide([ready(**more)], CARD, LEISURE, now) == expected
    assert decide([ready(**more)], CARD, RULES, now) == Wait(), "no time is set"


def test_the_model_of_a_user_that_appeared_is_loaded_if_that_disturbs_no_request() -> None:
    expected = stopped(expected=True)
    assert decide([expected], CARD, RULES, 5) == LoadEngine("b")
    assert decide([ready(last_used=90.0), expected], CARD, RULES, 100) == LoadEngine("b", ("a",))
    assert decide([ready(since=95.0), expected], CARD, RULES, 100) == Wait(115.0)
    assert decide([ready(in_flight=1), expected], CARD, RULES, 100) == Wait()
    assert decide([expected, default_engine()], CARD, LEISURE, 100) == LoadEngine("b")


def test_requests_precede_loads_without_requests() -> None:
    engines = [ready(since=90.0), stopped(waiting=1, oldest=95.0), stopped("c", expected=True), default_engine()]
    assert decide(engines, CARD, LEISURE, 100) == Wait(110.0)
    assert decide(engines, CARD, LEISURE, 110) == LoadEngine("b", ("a",))


def test_the_highest_priority_is_first_until_another_wait_is_overdue() -> None:
    engines = [stopped("low", waiting=1, oldest=0.0), stopped("high", waiting=1, oldest=9.0, priority=5)]
    assert decide(engines, CARD, RULES, 10) == LoadEngine("high")
    assert decide(engines, CARD, RULES, 30) == LoadEngine("low")


# Two models whose requests alternate for ten minutes.


def alternate(rules: Swap) -> tuple[int, float]:
    """Send a request a second for ``a`` and ``b`` in turn; return the loads and the longest wait in seconds."""
    engines = {name: stopped(name) for name in "ab"}
    waits: dict[str, list[float]] = {"a": [], "b": []}
    loads, longest = 0, 0.0
    for second in range(600):
        now, name, other = float(second), "ab"[second % 2], "ba"[second % 2]
        if engines[name].state == "ready":
            begun = engines[name].begun + (1 if waits[other] else 0)
            engines[name] = replace(engines[name], last_used=now, begun=begun)
        else:
            waits[name].append(now)
            engines[name] = replace(engines[name], waiting=len(waits[name]), oldest=waits[name][0])
        step = decide([*engines.values()], CARD, rules, now)
        if not isinstance(step, LoadEngine):
            continue
        loads += 1
        for victim in step.victims:
            engines[victim] = replace(engines[victim], state="stopped", since=now, begun=0)
        longest = max(longest, now - waits[step.name][0])
        waits[step.name].clear()
        engines[step.name] = replace(engines[step.name], state="ready", since=now, waiting=0, oldest=None, begun=0)
    return loads, longest


def test_alternating_requests_swap_at_most_once_a_residency_and_wait_at_most_the_bound() -> None:
    loads, longest = alternate(RULES)
    assert 2 <= loads <= 600 / RULES.min_residency_s + 1
    assert longest <= max(RULES.max_wait_s, RULES.min_residency_s) + 1


def test_control_without_a_residency_and_a_batch_each_request_swaps() -> None:
    loads, _ = alternate(Swap(max_wait_s=30, min_residency_s=0, batch=1))
    assert loads > 200
