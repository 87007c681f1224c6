"""Budgets of tokens per day and month: no set of parallel requests can exceed them.

Pure: the caller supplies the time in seconds since the epoch. A request is in one of these states:

| state | event | next state |
|---|---|---|
| new | what remains holds its most tokens, or a useful part of them | reserved |
| new | the rest is reserved by requests that run, or is used up | rejected |
| reserved | its end: usage is known | settled: its tokens count, its reservation does not |
| reserved | its failure, or the client disconnects | settled with the tokens of its usage record, often 0 |

A request counts for the day and the month in which it began, as its usage record does. The sum of all reservations
and of the used tokens never exceeds a budget, if no request needs more than its reservation; see
:mod:`~appliance.gateway.token_need`. The end users of a key count for the key's user.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from appliance.contract.model import UserPlan
from appliance.errors import BudgetError, RateLimitError
from appliance.store.calendar import DAY_S, day_name, day_of, month_of
from appliance.store.models import Account

USEFUL_TOKENS = 256
"""The fewest tokens to which a response is limited; with less the request is rejected."""

SHARE = 4
"""A request without a limit of its own gets at most one part of this many of what remains after its prompt."""

RUNNING_RETRY_S = 5.0
"""``Retry-After`` in seconds if requests that run have reserved the rest."""

KEPT_DAYS = 70
"""Days whose sums are kept: the present month, the one before, and a clock that was set back."""

DayTotals = Mapping[int, Mapping[str, int]]
"""Tokens of users by day; days count from the epoch."""


@dataclass(frozen=True, slots=True)
class TokenNeed:
    """The tokens that a request may take."""

    prompt: int
    """Estimate of all its prompts."""
    response: int = 0
    """The most tokens of one response."""
    responses: int = 1
    limited: bool = True
    """Whether the client limited the response, or the endpoint does."""
    ceiling: int | None = None
    """Tokens that the whole request never exceeds, because of the context; ``None`` for no such bound."""

    def total(self, cap: int) -> int:
        """Return the tokens of the whole request if each response has at most ``cap``."""
        tokens = self.prompt + cap * self.responses
        return tokens if self.ceiling is None else min(tokens, self.ceiling)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens of a budget that a request may take."""

    user: str
    day: int
    """Day on which the request began, counted from the epoch."""
    tokens: int
    cap: int | None = None
    """Tokens to which each of its responses must be limited; ``None`` for no further limit."""


@dataclass(frozen=True, slots=True)
class PeriodState:
    """The budget of one period: used, reserved and allowed tokens."""

    name: str
    """``day`` or ``month``."""
    key: str
    """``YYYY-MM-DD`` or ``YYYY-MM``."""
    used: int
    reserved: int
    limit: int | None
    reset_at: int
    """Start of the next period, in seconds since the epoch."""

    @property
    def percent(self) -> int:
        """The used share in whole percent; 0 without a limit."""
        return self.used * 100 // self.limit if self.limit is not None else 0

    @property
    def remaining(self) -> int | None:
        """The tokens that are neither used nor reserved; ``None`` without a limit."""
        return None if self.limit is None else max(0, self.limit - self.used - self.reserved)


@dataclass(slots=True)
class UserTokens:
    """The tokens of one user by day."""

    used: dict[int, int] = field(default_factory=dict)
    reserved: dict[int, int] = field(default_factory=dict)


class Budgets:
    """The plans of all users, and what they used and reserved.

    Args:
        plans: The plans of the site.
        default: Name of the plan of users without another one; ``None`` for none.
        shared: Whether other gateways write usage records too, so that :meth:`load` is repeated.
    """

    def __init__(self, plans: Mapping[str, UserPlan], default: str | None, *, shared: bool = False) -> None:
        self._plans = plans
        self._default = default
        self._shared = shared
        self._accounts: dict[str, Account] = {}
        self._tokens: dict[str, UserTokens] = {}
        self.changed: set[str] = set()
        """Users whose used tokens changed; the caller clears it."""
        self._recent: deque[tuple[int, str, int, int]] = deque()
        """Tokens that the last :meth:`load` did not contain, with the numbers of their usage records."""

    def set_accounts(self, accounts: Iterable[Account]) -> None:
        """Use these users from now on; all others have the default plan."""
        self._accounts = {account.name: account for account in accounts}

    def account(self, user: str) -> Account:
        """Return the stored user, or one without values."""
        return self._accounts.get(user) or Account(user)

    def plan_name(self, user: str, at: float) -> str | None:
        """Return the name of the plan of ``user`` at ``at``; ``None`` without one.

        A plan that the site does not have any more is replaced by the default plan.
        """
        account = self._accounts.get(user)
        own = account.plan_at(at) if account is not None else None
        return own if own in self._plans else self._default

    def plan(self, user: str, at: float) -> UserPlan | None:
        """Return the plan of ``user`` at ``at``; ``None`` without one."""
        return self._plans.get(self.plan_name(user, at) or "")

    def own_plans(self, at: float) -> dict[str, UserPlan]:
        """Return the plans of all users that have another one than the default at ``at``."""
        found = {}
        for user, account in self._accounts.items():
            own = account.plan_at(at)
            if own is not None and own in self._plans:
                found[user] = self._plans[own]
        return found

    def next_end(self, at: float) -> float:
        """Return the time at which the next plan ends; infinity without one."""
        ends = [account.plan_until for account in self._accounts.values() if account.plan_until is not None]
        return min((end for end in ends if end > at), default=math.inf)

    def has_budget(self, user: str, at: float) -> bool:
        """Return whether the plan of ``user`` limits its tokens."""
        plan = self.plan(user, at)
        return plan is not None and (plan.tokens_per_day is not None or plan.tokens_per_month is not None)

    def reserve(self, user: str, need: TokenNeed, at: float) -> Reservation | None:
        """Reserve the tokens of a request that begins at ``at``.

        If what remains does not hold ``need``, the responses are limited to the rest, unless that is below
        :data:`USEFUL_TOKENS`. A request without a limit of its own gets a part of the rest, so that the
        user can have several at once.

        Returns:
            The reservation, or ``None`` if the user has no budget.

        Raises:
            BudgetError: The budget does not hold the request.
            RateLimitError: The budget would hold it, but requests that run have reserved the rest.
        """
        periods = [state for state in self.periods(user, at) if state.limit is not None]
        if not periods:
            return None
        remaining = min(state.remaining or 0 for state in periods)
        least = need.total(min(need.response, USEFUL_TOKENS))
        if least > remaining:
            raise _refusal(periods, least, at)
        part = remaining - need.prompt
        if not need.limited:
            part //= SHARE
        tokens, cap = need.total(need.response), None
        if tokens > need.prompt + part:
            cap = max(part // need.responses, min(need.response, USEFUL_TOKENS))
            tokens = need.total(cap)
            cap = cap if cap < need.response else None
        found = Reservation(user, day_of(at), tokens, cap)
        reserved = self._of(user).reserved
        reserved[found.day] = reserved.get(found.day, 0) + tokens
        return found

    def settle(
        self, user: str, tokens: int, at: float, *, reservation: Reservation | None = None, number: int = 0
    ) -> None:
        """Count a request that began at ``at`` and has ended, and release its reservation.

        Args:
            user: The user, without an end user.
            tokens: Its tokens, as in its usage record.
            at: The time at which it began.
            reservation: The result of :meth:`reserve`.
            number: Number of its usage record among those that this gateway has written.
        """
        if reservation is not None:
            self._release(reservation)
        if tokens:
            day = day_of(at)
            used = self._of(user).used
            used[day] = used.get(day, 0) + tokens
            self.changed.add(user)
            if self._shared:
                self._recent.append((number, user, day, tokens))

    def load(self, days: DayTotals, through: int, at: float) -> None:
        """Replace the used tokens of ``days`` by the sums of usage records.

        Args:
            days: Tokens of users by day; a user that is absent used none.
            through: Number of usage records of this gateway that the sums contain.
            at: The present time.
        """
        while self._recent and self._recent[0][0] <= through:
            self._recent.popleft()
        oldest = day_of(at) - KEPT_DAYS
        for user, tokens in self._tokens.items():
            for day in [day for day in tokens.used if day < oldest or user not in days.get(day, {user: 0})]:
                del tokens.used[day]
                self.changed.add(user)
        for day, users in days.items():
            for user, total in users.items():
                used = self._of(user).used
                if used.get(day) != total:
                    used[day] = total
                    self.changed.add(user)
        for _, user, day, more in self._recent:
            if day in days:
                used = self._of(user).used
                used[day] = used.get(day, 0) + more

    def periods(self, user: str, at: float) -> tuple[PeriodState, PeriodState]:
        """Return the states of the day and of the month of ``at``."""
        plan = self.plan(user, at)
        tokens = self._tokens.get(user) or UserTokens()
        day = day_of(at)
        month = month_of(day)
        return (
            PeriodState(
                "day",
                day_name(day),
                tokens.used.get(day, 0),
                tokens.reserved.get(day, 0),
                None if plan is None else plan.tokens_per_day,
                (day + 1) * DAY_S,
            ),
            PeriodState(
                "month",
                month.name,
                _within(tokens.used, month.first, month.after),
                _within(tokens.reserved, month.first, month.after),
                None if plan is None else plan.tokens_per_month,
                month.until,
            ),
        )

    def limited(self, at: float, users: Iterable[str] | None = None) -> dict[str, list[PeriodState]]:
        """Return the states of ``users``, as far as a budget limits them; by default of all with used tokens."""
        found = {}
        for user in self._tokens if users is None else users:
            if self.has_budget(user, at):
                found[user] = [state for state in self.periods(user, at) if state.limit is not None]
        return found

    def header(self, user: str, at: float) -> bytes:
        """Return the header line with the used percent and the seconds to the reset; empty without a budget."""
        if not self.has_budget(user, at):
            return b""
        parts = [
            f"{state.name};used={state.percent};reset={max(1, math.ceil(state.reset_at - at))}"
            for state in self.periods(user, at)
            if state.limit is not None
        ]
        return b"x-appliance-budget: %s\r\n" % ", ".join(parts).encode()

    def _of(self, user: str) -> UserTokens:
        known = self._tokens.get(user)
        if known is None:
            known = self._tokens[user] = UserTokens()
        return known

    def _release(self, reservation: Reservation) -> None:
        reserved = self._of(reservation.user).reserved
        left = reserved.get(reservation.day, 0) - reservation.tokens
        if left:
            reserved[reservation.day] = left
        else:
            reserved.pop(reservation.day, None)


def _within(days: Mapping[int, int], first: int, after: int) -> int:
    return sum(tokens for day, tokens in days.items() if first <= day < after)


def _refusal(periods: list[PeriodState], least: int, at: float) -> RateLimitError:
    """Return the error of a request that needs at least ``least`` tokens; the later reset counts."""
    short = [state for state in periods if (state.limit or 0) - state.used < least]
    if not short:
        return RateLimitError(
            "Your running requests have reserved the rest of your budget of tokens; wait for one to end",
            retry_after=RUNNING_RETRY_S,
        )
    state = max(short, key=lambda state: state.reset_at)
    left = max(0, (state.limit or 0) - state.used)
    rest = f"{left} of your {state.limit} tokens per {state.name} remain"
    if left:
        rest += f", and this request needs up to {least}"
    else:
        rest = f"You have used up your {state.limit} tokens per {state.name}"
    when = f"{day_name(day_of(state.reset_at))} 00:00 UTC"
    return BudgetError(f"{rest}; the budget resets at {when}", retry_after=max(1.0, state.reset_at - at))
