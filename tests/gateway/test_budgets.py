"""Budgets over time: reservations, settlement, sums of the database, plans that end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance.contract.model import UserPlan
from appliance.errors import BudgetError, RateLimitError
from appliance.gateway.budgets import RUNNING_RETRY_S, USEFUL_TOKENS, Budgets, Reservation, TokenNeed
from appliance.store.calendar import DAY_S, day_of
from appliance.store.models import Account

NOON = 1_795_867_200.0
"""2026-11-28 12:00 UTC."""


def with_plan(**tokens: Any) -> Budgets:
    """Return budgets whose default plan has these limits."""
    return Budgets({"basic": UserPlan(**tokens)}, "basic")


def used(budgets: Budgets, user: str = "ada", at: float = NOON) -> tuple[int, int]:
    """Return the used tokens of the day and of the month."""
    day, month = budgets.periods(user, at)
    return day.used, month.used


def reserved(budgets: Budgets, user: str = "ada", at: float = NOON) -> int:
    return budgets.periods(user, at)[1].reserved


def taken(budgets: Budgets, need: TokenNeed, at: float = NOON) -> Reservation:
    """Reserve ``need`` for ``ada``, which has a budget."""
    found = budgets.reserve("ada", need, at)
    assert found is not None
    return found


def test_a_user_without_a_budget_reserves_nothing() -> None:
    for budgets in (Budgets({}, None), with_plan(), with_plan(tokens_per_minute=5)):
        assert budgets.reserve("ada", TokenNeed(10**9, 10**9), NOON) is None
        assert budgets.header("ada", NOON) == b""
        budgets.settle("ada", 7, NOON)
        assert used(budgets) == (7, 7), "the tokens count all the same, for GET /v1/usage"


def test_a_reservation_is_replaced_by_the_real_tokens() -> None:
    budgets = with_plan(tokens_per_day=1000)
    found = taken(budgets, TokenNeed(100, 500))
    assert (found.tokens, found.cap) == (600, None)
    assert (used(budgets), reserved(budgets)) == ((0, 0), 600)
    budgets.settle("ada", 90, NOON, reservation=found)
    assert (used(budgets), reserved(budgets)) == ((90, 90), 0)
    assert used(budgets, "bob") == (0, 0)


def test_a_failure_releases_all_tokens() -> None:
    budgets = with_plan(tokens_per_day=1000)
    budgets.settle("ada", 0, NOON, reservation=taken(budgets, TokenNeed(100, 800)))
    assert (used(budgets), reserved(budgets)) == ((0, 0), 0)
    assert taken(budgets, TokenNeed(100, 900)).tokens == 1000


def test_a_limit_above_the_rest_is_reduced_to_the_rest() -> None:
    budgets = with_plan(tokens_per_day=1000)
    found = taken(budgets, TokenNeed(100, 32_000))
    assert (found.tokens, found.cap) == (1000, 900)


def test_several_responses_divide_the_rest() -> None:
    found = taken(with_plan(tokens_per_day=3000), TokenNeed(100, 32_000, 4))
    assert (found.tokens, found.cap) == (3000, 725)


def test_requests_without_a_limit_leave_room_for_others_of_the_user() -> None:
    budgets = with_plan(tokens_per_day=100_000)
    need = TokenNeed(1000, 200_000, limited=False, ceiling=200_000)
    found = [taken(budgets, need) for _ in range(8)]
    caps = [one.cap for one in found]
    assert caps[0] == 24_750
    assert caps == sorted(caps, key=lambda cap: -(cap or 0))
    assert all(cap is not None and cap >= USEFUL_TOKENS for cap in caps)
    assert sum(one.tokens for one in found) <= 100_000


def test_a_small_context_needs_no_cap() -> None:
    found = taken(with_plan(tokens_per_day=100_000), TokenNeed(1000, 4096, limited=False, ceiling=4096))
    assert (found.tokens, found.cap) == (4096, None)


def test_less_than_a_useful_number_is_rejected_with_the_reset() -> None:
    budgets = with_plan(tokens_per_day=1000)
    budgets.settle("ada", 801, NOON)
    with pytest.raises(BudgetError, match=r"199 of your 1000 tokens per day remain, .* needs up to 306") as error:
        budgets.reserve("ada", TokenNeed(50, 4096), NOON)
    assert error.value.retry_after == DAY_S / 2
    assert str(error.value).endswith("the budget resets at 2026-11-29 00:00 UTC")
    # A client that wants less than the useful number gets it.
    assert taken(budgets, TokenNeed(50, 149)).cap is None
    budgets.settle("ada", 5000, NOON)
    with pytest.raises(BudgetError, match="You have used up your 1000 tokens per day"):
        budgets.reserve("ada", TokenNeed(1), NOON)


def test_a_rest_that_running_requests_hold_is_free_soon() -> None:
    budgets = with_plan(tokens_per_day=1000)
    first = taken(budgets, TokenNeed(500, 500))
    with pytest.raises(RateLimitError, match="Your running requests have reserved the rest") as error:
        budgets.reserve("ada", TokenNeed(100, 300), NOON)
    assert not isinstance(error.value, BudgetError)
    assert error.value.retry_after == RUNNING_RETRY_S
    budgets.settle("ada", 600, NOON, reservation=first)
    assert taken(budgets, TokenNeed(100, 300)).tokens == 400


def test_the_later_reset_counts_if_both_budgets_are_used_up() -> None:
    budgets = with_plan(tokens_per_day=100, tokens_per_month=150)
    budgets.settle("ada", 150, NOON)
    with pytest.raises(BudgetError, match="150 tokens per month; the budget resets at 2026-12-01") as error:
        budgets.reserve("ada", TokenNeed(1), NOON)
    assert error.value.retry_after == 2.5 * DAY_S


def test_a_request_over_midnight_counts_for_the_day_on_which_it_began() -> None:
    budgets = with_plan(tokens_per_day=1000, tokens_per_month=10_000)
    late = NOON + DAY_S / 2 - 1
    found = taken(budgets, TokenNeed(100, 900), late)
    morning = late + 2
    assert taken(budgets, TokenNeed(100, 900), morning).tokens == 1000, "the new day has its own budget"
    budgets.settle("ada", 700, late, reservation=found)
    assert used(budgets, at=late) == (700, 700)
    assert used(budgets, at=morning) == (0, 700)
    assert reserved(budgets, at=morning) == 1000


def test_the_end_of_a_month_resets_both_budgets() -> None:
    budgets = with_plan(tokens_per_day=1000, tokens_per_month=1000)
    last = NOON + 2.49 * DAY_S
    found = taken(budgets, TokenNeed(0, 1000), last)
    budgets.settle("ada", 1000, last, reservation=found)
    with pytest.raises(BudgetError):
        budgets.reserve("ada", TokenNeed(1), last)
    assert used(budgets, at=last + 0.02 * DAY_S) == (0, 0)
    assert taken(budgets, TokenNeed(0, 1000), last + 0.02 * DAY_S).tokens == 1000
    # A clock that is set back finds its own day again.
    assert used(budgets, at=last) == (1000, 1000)


def test_a_plan_that_ends_falls_to_the_default_plan() -> None:
    plans = {"free": UserPlan(tokens_per_day=10), "large": UserPlan(tokens_per_day=10**6, models=("m",))}
    budgets = Budgets(plans, "free")
    accounts = [Account("ada", "large", NOON), Account("bob", "large"), Account("eve", "removed")]
    budgets.set_accounts(accounts)
    assert [budgets.plan_name(user, NOON - 1) for user in ("ada", "bob", "eve", "joe")] == [
        "large",
        "large",
        "free",
        "free",
    ]
    assert budgets.plan_name("ada", NOON) == "free"
    assert budgets.own_plans(NOON - 1).keys() == {"ada", "bob"}
    assert budgets.own_plans(NOON).keys() == {"bob"}
    assert (budgets.next_end(NOON - 1), budgets.next_end(NOON)) == (NOON, float("inf"))
    assert Budgets({}, None).plan("ada", NOON) is None


def test_the_header_has_the_used_percent_and_the_seconds_to_the_reset() -> None:
    budgets = with_plan(tokens_per_day=1000, tokens_per_month=100_000)
    budgets.settle("ada", 839, NOON)
    assert budgets.header("ada", NOON) == (
        b"x-appliance-budget: day;used=83;reset=43200, month;used=0;reset=216000\r\n"
    )


def test_sums_replace_the_days_that_were_read_and_keep_later_requests() -> None:
    budgets = Budgets({"basic": UserPlan(tokens_per_day=1000)}, "basic", shared=True)
    today = day_of(NOON)
    for number in (1, 2, 3):
        budgets.settle("ada", 10, NOON, number=number)
    budgets.settle("ada", 100, NOON - DAY_S, number=4)
    # The view has the first two records of this gateway, and 500 tokens of another one.
    budgets.load({today: {"ada": 520, "bob": 7}}, 2, NOON)
    assert (used(budgets), used(budgets, "bob")) == ((530, 630), (7, 7))
    budgets.load({today - 1: {"ada": 100}, today: {"ada": 530}}, 4, NOON)
    assert used(budgets) == (530, 630)
    budgets.load({today - 1: {}, today: {}}, 4, NOON)
    assert used(budgets) == (0, 0)


def test_a_settled_request_is_kept_until_a_view_contains_it() -> None:
    budgets = Budgets({"basic": UserPlan(tokens_per_day=1000)}, "basic", shared=True)
    today = day_of(NOON)
    found = taken(budgets, TokenNeed(10, 90))
    budgets.load({today: {"ada": 50}}, 0, NOON)
    assert (used(budgets), reserved(budgets)) == ((50, 50), 100)
    budgets.settle("ada", 60, NOON, reservation=found, number=1)
    for _ in range(2):
        budgets.load({today: {"ada": 50}}, 0, NOON)
        assert used(budgets) == (110, 110)
    budgets.load({today: {"ada": 110}}, 1, NOON)
    assert used(budgets) == (110, 110)


@given(
    st.integers(1, 5000),
    st.integers(0, 5000),
    st.builds(
        TokenNeed,
        st.integers(0, 3000),
        st.integers(0, 3000),
        st.integers(1, 4),
        limited=st.booleans(),
        ceiling=st.none() | st.integers(3000, 6000),
    ),
)
def test_a_reservation_fits_the_rest_and_its_cap(limit: int, before: int, need: TokenNeed) -> None:
    budgets = with_plan(tokens_per_day=limit)
    budgets.settle("ada", before, NOON)
    try:
        found = taken(budgets, need)
    except BudgetError:
        assert need.total(min(need.response, USEFUL_TOKENS)) > max(0, limit - before)
        return
    assert found.tokens <= max(0, limit - before)
    assert found.tokens == need.total(need.response if found.cap is None else found.cap)
    if found.cap is not None:
        assert USEFUL_TOKENS <= found.cap < need.response


@dataclass
class AdmittedRequest:
    """A request that runs, with the time at which it began."""

    reservation: Reservation
    at: float


class ParallelRequests(RuleBasedStateMachine):
    """Admissions, ends and failures of requests in any order, while the clock passes midnight and a month's end."""

    @initialize(day=st.integers(500, 5000), month=st.integers(500, 20_000))
    def begin(self, day: int, month: int) -> None:
        self.budgets = Budgets(
            {"basic": UserPlan(tokens_per_day=day, tokens_per_month=month)}, "basic", shared=True
        )
        self.now = NOON
        self.running: list[AdmittedRequest] = []
        self.records: list[tuple[int, int]] = []
        """The days and tokens of all usage records, in their order."""
        self.stored = 0

    @rule(prompt=st.integers(0, 400), response=st.integers(0, 4000), limited=st.booleans())
    def admit(self, prompt: int, response: int, limited: bool) -> None:
        need = TokenNeed(prompt, response, limited=limited, ceiling=4096)
        try:
            self.running.append(AdmittedRequest(taken(self.budgets, need, self.now), self.now))
        except RateLimitError:
            return

    @rule(data=st.data(), share=st.floats(0, 1))
    def end(self, data: st.DataObject, share: float) -> None:
        """End a request with a part of what it reserved; nothing, if it failed."""
        if self.running:
            one = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
            tokens = int(one.reservation.tokens * share)
            self.records.append((day_of(one.at), tokens))
            self.budgets.settle("ada", tokens, one.at, reservation=one.reservation, number=len(self.records))

    @rule(seconds=st.floats(-7200, 90_000))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """Read the sums of a database that contains a part of the records."""
        self.stored = data.draw(st.integers(self.stored, len(self.records)))
        today = day_of(self.now)
        sums: dict[int, dict[str, int]] = {day: {} for day in range(today - 40, today + 2)}
        for day, tokens in self.records[: self.stored]:
            if day in sums:
                sums[day]["ada"] = sums[day].get("ada", 0) + tokens
        self.budgets.load(sums, self.stored, self.now)

    @invariant()
    def no_budget_is_exceeded(self) -> None:
        for state in self.budgets.periods("ada", self.now):
            assert state.limit is not None
            assert state.used + state.reserved <= state.limit
        today = day_of(self.now)
        assert used(self.budgets, at=self.now)[0] == sum(tokens for day, tokens in self.records if day == today)

    def teardown(self) -> None:
        if hasattr(self, "budgets"):
            while self.running:
                one = self.running.pop()
                self.records.append((day_of(one.at), one.reservation.tokens))
                self.budgets.settle(
                    "ada",
                    one.reservation.tokens,
                    one.at,
                    reservation=one.reservation,
                    number=len(self.records),
                )
            self.no_budget_is_exceeded()
            assert reserved(self.budgets, at=self.now) == 0


TestParallelRequests = ParallelRequests.TestCase
TestParallelRequests.settings = settings(max_examples=40, stateful_step_count=40)
