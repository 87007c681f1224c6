"""Allowances of users, end users and keys over time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.contract.model import Limits, UserPlan
from appliance.errors import RateLimitError
from appliance.gateway.limits import Allowance, Ledger
from appliance.store.models import Key


def a_key(user: str, key_id: str = "0" * 12, **limits: Any) -> Key:
    return Key(key_id, user, b"", 0.0, **limits)


def refused(ledger: Ledger, user: str, now: float) -> float | None:
    """Return the seconds to wait, or ``None`` if the request is admitted."""
    try:
        ledger.admit(a_key(user), now)
    except RateLimitError as error:
        return error.retry_after
    return None


def test_requests_per_minute_refill_and_are_each_users_own() -> None:
    ledger = Ledger(Limits(requests_per_minute=2), {"vip": Limits()})
    assert [refused(ledger, "a", 0), refused(ledger, "a", 0), refused(ledger, "a", 0)] == [None, None, 30.0]
    assert refused(ledger, "b", 0) is None
    assert all(refused(ledger, "vip", 0) is None for _ in range(100))
    assert refused(ledger, "a", 29) == pytest.approx(1.0)
    assert refused(ledger, "a", 30) is None


def test_tokens_are_charged_afterwards_and_block_the_next_request() -> None:
    ledger = Ledger(Limits(tokens_per_minute=60), {})
    ledger.finish(ledger.admit(a_key("a"), 0), 90, 0)
    assert refused(ledger, "a", 0) == 30.0
    assert refused(ledger, "a", 30) is None


def test_requests_in_flight() -> None:
    ledger = Ledger(Limits(requests_in_flight=1), {})
    running = ledger.admit(a_key("a"), 0)
    assert refused(ledger, "a", 0) == 1
    ledger.finish(running, 0, 1)
    assert refused(ledger, "a", 1) is None


@given(st.lists(st.tuples(st.floats(-5, 20), st.integers(0, 200)), max_size=60))
def test_no_more_than_burst_plus_rate_with_any_clock(steps: list[tuple[float, int]]) -> None:
    ledger = Ledger(Limits(requests_per_minute=6, tokens_per_minute=600), {})
    now, forward, admitted = 0.0, 0.0, 0
    for step, tokens in steps:
        now += step
        forward += max(step, 0.0)
        try:
            running = ledger.admit(a_key("a"), now)
        except RateLimitError:
            continue
        admitted += 1
        ledger.finish(running, tokens, now)
    assert admitted <= 6 + forward / 10 + 1e-6


def test_a_keys_own_limits_narrow_its_users_and_may_change() -> None:
    ledger = Ledger(Limits(requests_per_minute=3), {})
    narrow = a_key("a", requests_per_minute=1)
    ledger.finish(ledger.admit(narrow, 0), 0, 0)
    with pytest.raises(RateLimitError, match="This key has used up 1 requests per minute"):
        ledger.admit(narrow, 0)
    wider = a_key("a", requests_per_minute=100)
    assert [refused_by(ledger, wider, 0) for _ in range(3)] == [None, None, 30.0 - 10.0]
    once = a_key("b", "1" * 12, requests_in_flight=1)
    running = ledger.admit(once, 0)
    changed = a_key("b", "1" * 12, requests_in_flight=2)
    second = ledger.admit(changed, 0)
    assert refused_by(ledger, changed, 0) == 1, "a request from before the change still counts"
    ledger.finish(running, 0, 0)
    ledger.finish(second, 0, 0)
    ledger.admit(changed, 0)


def refused_by(ledger: Ledger, key: Key, now: float) -> float | None:
    try:
        ledger.admit(key, now)
    except RateLimitError as error:
        return error.retry_after
    return None


def test_a_keys_weight_precedes_its_users() -> None:
    ledger = Ledger(Limits(weight=2.0), {"vip": Limits(weight=5.0)})
    assert [ledger.weight(a_key("a")), ledger.weight(a_key("vip")), ledger.weight(a_key("vip", weight=1.0))] == [
        2.0,
        5.0,
        1.0,
    ]


def behind(name: str, user: str = "app", **more: Any) -> Key:
    """Return the key of an application for its end user ``name``."""
    return a_key(user, end_users=True, **more).of_end_user(name)


def test_each_end_user_has_an_allowance_and_the_others_requests_do_not_touch_it() -> None:
    ledger = Ledger(Limits(requests_per_minute=2), {"app/vip": Limits(requests_per_minute=3)})
    assert [refused_by(ledger, behind("ada"), 0) for _ in range(3)] == [None, None, 30.0]
    assert [refused_by(ledger, behind("bob"), 0) for _ in range(3)] == [None, None, 30.0]
    assert [refused_by(ledger, behind("vip"), 0) for _ in range(4)] == [None, None, None, 20.0]
    own = a_key("app", end_users=True)
    assert [refused_by(ledger, own, 0) for _ in range(3)] == [None, None, 30.0], "requests without an end user"
    again = behind("ada", key_id="1" * 12)
    assert refused_by(ledger, again, 0) == 30.0, "one person with two keys of a user is one end user"
    assert refused_by(ledger, behind("ada", "other"), 0) is None, (
        "the same name under another user is another person"
    )
    assert refused_by(ledger, a_key("ada"), 0) is None


def test_a_keys_own_limits_apply_to_all_its_end_users_together() -> None:
    ledger = Ledger(Limits(), {})
    narrow: dict[str, Any] = {"requests_in_flight": 2, "tokens_per_minute": 60}
    running = [ledger.admit(behind(name, **narrow), 0) for name in ("ada", "bob")]
    with pytest.raises(RateLimitError, match="This key has 2 requests running"):
        ledger.admit(behind("eve", **narrow), 0)
    with pytest.raises(RateLimitError, match="This key has 2 requests running"):
        ledger.admit(a_key("app", end_users=True, **narrow), 0)
    for one in running:
        ledger.finish(one, 60, 0)
    assert refused_by(ledger, behind("eve", **narrow), 0) == 60.0, "tokens of the others"
    assert refused_by(ledger, behind("eve", **narrow), 60) is None


def test_limits_of_a_keys_user_apply_to_all_its_end_users_together() -> None:
    ledger = Ledger(Limits(requests_per_minute=100), {"app": Limits(requests_per_minute=3)})
    assert [refused_by(ledger, behind(name), 0) for name in ("ada", "bob", "eve", "eve")] == [None] * 3 + [20.0]
    with pytest.raises(RateLimitError, match="app and its end users have used up 3 requests per minute"):
        ledger.admit(behind("joe"), 0)
    assert refused_by(ledger, a_key("app", end_users=True), 0) == 20.0
    assert refused_by(ledger, a_key("app", "1" * 12), 0) == 20.0, "and another key of this user"
    assert refused_by(ledger, behind("joe", "other"), 0) is None


@pytest.mark.parametrize("full", ["end user", "user", "key"])
def test_a_rejected_request_counts_for_no_allowance(full: str) -> None:
    """One of its three allowances is used up; the others do not change."""
    one, many = Limits(requests_in_flight=1), Limits(requests_in_flight=9, requests_per_minute=9)
    ledger = Ledger(Limits(), {"app": one if full == "user" else many, "app/ada": one if full != "key" else many})
    key = behind("ada", requests_in_flight=1 if full == "key" else 9)
    running = ledger.admit(key, 0)
    before = [(one.in_flight, one.requests and one.requests.level) for one in running]
    for _ in range(20):
        assert refused_by(ledger, key, 0) == 1
    assert [(one.in_flight, one.requests and one.requests.level) for one in running] == before
    assert [one.in_flight for one in running] == [1, 1, 1]
    ledger.finish(running, 0, 0)
    assert refused_by(ledger, key, 0) is None


def test_a_keys_allowance_outlives_its_name_and_its_end_users() -> None:
    ledger = Ledger(Limits(), {})
    assert refused_by(ledger, a_key("app", requests_per_minute=1), 0) is None
    for other in (
        a_key("app", requests_per_minute=1, name="new"),
        a_key("app", requests_per_minute=1, end_users=True),
        behind("ada", requests_per_minute=1),
        behind("bob", requests_per_minute=1),
    ):
        assert refused_by(ledger, other, 0) == 60.0


def test_an_end_users_weight_is_the_keys_then_its_own_then_its_users() -> None:
    ledger = Ledger(Limits(weight=2.0), {"app": Limits(weight=3.0), "app/vip": Limits(weight=5.0)})
    weights = [ledger.weight(key) for key in (behind("vip", weight=7.0), behind("vip"), behind("ada"))]
    assert weights == [7.0, 5.0, 3.0]
    assert ledger.weight(behind("ada", "other")) == 2.0


STEPS = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["begin", "end", "wait"]), st.integers(0, 90)),
    max_size=80,
)


@given(STEPS)
def test_a_ledger_that_discards_decides_like_one_that_does_not(steps: list[tuple[str, str, int]]) -> None:
    """Sizes and times are whole, so that both ledgers compute the same floats."""
    limits = Limits(requests_per_minute=2 * 60, tokens_per_minute=60, requests_in_flight=2)
    ledgers = [Ledger(limits, {}, max_end_users=count) for count in (2, 10_000)]
    running: list[tuple[tuple[Allowance, ...], ...]] = []
    now = 0.0
    for name, action, amount in steps:
        if action == "wait":
            now += amount
        elif action == "end" and running:
            for ledger, one in zip(ledgers, running.pop(amount % len(running)), strict=True):
                ledger.finish(one, amount, now)
        elif action == "begin":
            new = f"app/{name}" not in ledgers[0].kept_end_users
            found: list[Any] = []
            for ledger in ledgers:
                try:
                    found.append(ledger.admit(behind(name), now))
                except RateLimitError as error:
                    found.append((str(error), error.retry_after))
            if isinstance(found[0][0], Allowance):
                running.append((found[0], found[1]))
            else:
                assert found[0] == found[1]
            assert isinstance(found[1][0], Allowance) == isinstance(found[0][0], Allowance)
            known = ledgers[0].kept_end_users
            kept = sum(not allowance.replaceable(now) for allowance in known.values())
            # A new end user causes discards; one that is known and has refilled does not.
            assert not new or len(known) <= 2 + kept + 1
    counts = [sum(a.in_flight for a in ledger.kept_end_users.values()) for ledger in ledgers]
    assert counts == [len(running)] * 2, "no request in flight was discarded"


def test_allowances_of_invented_end_users_are_bounded() -> None:
    ledger = Ledger(Limits(requests_per_minute=60, tokens_per_minute=60), {}, max_end_users=100)
    names = (f"user{number}" for number in itertools.count())
    for name in itertools.islice(names, 1000):
        ledger.finish(ledger.admit(behind(name), 0), 0, 0)
    assert len(ledger.kept_end_users) == 1000, "each bucket lacks one request, so none may be discarded"
    busy = [ledger.admit(behind(f"busy{number}"), 0) for number in range(50)]
    for name in itertools.islice(names, 300):
        ledger.finish(ledger.admit(behind(name), 1), 0, 1)
    for now in range(2, 600):
        ledger.finish(ledger.admit(behind(next(names)), now), 0, now)
        assert now < 400 or len(ledger.kept_end_users) <= 100, "buckets that have refilled are discarded"
    assert all(f"app/busy{number}" in ledger.kept_end_users for number in range(50))
    for one in busy:
        ledger.finish(one, 10_000, 600)
    for now in range(601, 700):
        ledger.finish(ledger.admit(behind(next(names)), now), 0, now)
    assert refused_by(ledger, behind("busy7"), 700) == pytest.approx(9940 - 100), "its debt is kept"


def test_a_plan_replaces_the_limits_of_its_user_and_keeps_what_runs() -> None:
    ledger = Ledger(Limits(requests_per_minute=2), {"named": Limits(requests_per_minute=1)})
    running = ledger.admit(a_key("a"), 0)
    assert refused(ledger, "a", 0) is None
    assert refused(ledger, "a", 0) == 30.0
    plan = UserPlan(requests_per_minute=60, requests_in_flight=3, weight=4.0)
    ledger.set_plans({"a": plan, "named": plan}, 0)
    assert (ledger.weight(a_key("a")), ledger.weight(a_key("b"))) == (4.0, 1.0)
    assert refused(ledger, "a", 0) is None
    assert refused(ledger, "a", 0) == 1, "the request that runs counts for the new limit"
    ledger.finish(running, 0, 0)
    assert refused(ledger, "a", 0) is None
    assert [refused(ledger, "named", 0), refused(ledger, "named", 0)] == [None, 60.0], (
        "the limits of the site take precedence"
    )
    ledger.set_plans({"a": plan, "named": plan}, 30)
    assert refused(ledger, "a", 30) == 1, "an unchanged plan changes nothing"
    ledger.set_plans({}, 30)
    assert ledger.limits("a") == Limits(requests_per_minute=2)
    assert [refused(ledger, "a", 30) for _ in range(3)] == [None, None, 30.0]


def test_a_key_narrows_the_limits_of_a_plan() -> None:
    ledger = Ledger(Limits(), {})
    ledger.set_plans({"a": UserPlan(requests_per_minute=2)}, 0)
    wide, narrow = a_key("a", requests_per_minute=100), a_key("a", "1" * 12, requests_per_minute=1)
    assert refused_by(ledger, narrow, 0) is None
    with pytest.raises(RateLimitError, match="This key has used up 1"):
        ledger.admit(narrow, 0)
    assert refused_by(ledger, wide, 0) is None
    with pytest.raises(RateLimitError, match="You have used up 2"):
        ledger.admit(wide, 0)
