"""The guard: which state of a host lets a benchmark run."""

from __future__ import annotations

import pytest

from appliance.bench.guard import GuardLook, GuardRules, GuardState, inside, watch

NOON = 12 * 60


def after(*looks: GuardLook, rules: GuardRules | None = None) -> GuardState:
    state = GuardState()
    for look in looks:
        state = watch(state, look, rules or GuardRules())
    return state


def test_a_calm_host_has_none() -> None:
    assert after(GuardLook(minute=NOON, temperature_c=60.0)).reason == ""


def test_two_looks_with_load_of_users_are_an_obstacle_and_one_is_not() -> None:
    busy, calm = GuardLook(minute=NOON, others=3), GuardLook(minute=NOON)
    assert after(busy).reason == ""
    assert after(busy, busy).reason == "users have 3 requests running and 0 waiting"
    assert after(busy, calm, busy).reason == ""


def test_users_may_have_their_share_but_none_of_them_waits() -> None:
    rules = GuardRules(users=4)
    assert after(*[GuardLook(minute=NOON, others=4)] * 3, rules=rules).reason == ""
    assert after(*[GuardLook(minute=NOON, others=5)] * 2, rules=rules).reason
    assert after(*[GuardLook(minute=NOON, others=1, waiting=1)] * 2, rules=rules).reason


def test_a_hot_card_is_an_obstacle_until_it_is_cool() -> None:
    def at(degrees: float | None) -> GuardLook:
        return GuardLook(minute=NOON, temperature_c=degrees)

    assert after(at(82.9)).reason == ""
    assert after(at(83.0)).reason == "a card has 83 °C, the limit is 83"
    assert after(at(85.0), at(75.0)).reason == "a card has 75 °C, the limit is 70"
    assert after(at(85.0), at(75.0), at(75.0)).reason == "a card has 75 °C, the limit is 70"
    assert after(at(85.0), at(69.0), at(75.0)).reason == ""
    assert after(at(None)).reason == ""


@pytest.mark.parametrize(
    ("look", "reason"),
    [
        (GuardLook(minute=NOON, on_battery=True), "the host runs on its battery"),
        (GuardLook(minute=NOON, problem="no gateway responds"), "no gateway responds"),
    ],
)
def test_battery_and_gateway_are_obstacles_at_once(look: GuardLook, reason: str) -> None:
    assert after(look).reason == reason


def test_outside_its_window_nothing_runs() -> None:
    night = GuardRules(window=(22 * 60, 5 * 60))
    assert after(GuardLook(minute=NOON), rules=night).reason == "the time is outside the window"
    assert after(GuardLook(minute=0), rules=night).reason == ""


@pytest.mark.parametrize(
    ("minute", "window", "is_inside"),
    [
        (120, (120, 300), True),
        (300, (120, 300), False),
        (1439, (1380, 60), True),
        (60, (1380, 60), False),
        (59, (1380, 60), True),
    ],
)
def test_a_window_contains_its_begin_and_not_its_end(minute: int, window: tuple[int, int], is_inside: bool) -> None:
    assert inside(minute, window) is is_inside
