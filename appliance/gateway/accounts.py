"""Users, plans and budgets of a running gateway: read from the database in threads, counted in memory.

No request waits for the database. The sums of usage records are read at the start and at each new day. Several
gateways may share a PostgreSQL, so with one the sums of today and yesterday are read again every :data:`REREAD_S`
seconds. Requests that this gateway counted and the sums do not contain yet are added: none is lost or counts twice.
A budget can be exceeded by the running requests of other gateways: they are unknown until they end and the sums are
read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from appliance.contract.model import Limits, Site
from appliance.errors import StoreError
from appliance.gateway.budgets import Budgets, PeriodState
from appliance.gateway.limits import Ledger
from appliance.gateway.usage_writer import UsageWriter
from appliance.store.calendar import day_of, month_of
from appliance.store.models import Account, Key
from appliance.store.users import UserStore

LOG = logging.getLogger(__name__)

STEP_S = 0.5
"""Seconds between two looks for budgets that reached a share."""

REREAD_S = 10.0
"""Seconds between two reads of the sums, if other gateways may write usage records."""

NOTICE_PERCENT = (80, 100)
"""Used shares of a budget that are recorded and logged, once per period."""

NOTICE_KEPT_S = 6 * 3600.0
"""Seconds for which a notice is in the metrics; the alert on it ends earlier."""

MOST_USERS = 100
"""Users in the metric of budgets: those that used most of theirs."""


class GatewayAccounts:
    """The users of one gateway.

    Args:
        site: The site with its plans.
        users: Store of the users.
        usage: Writer of the usage records.
        ledger: Gets the limits of the users' plans.
        clock: Time in seconds since the epoch.
    """

    def __init__(
        self,
        site: Site,
        users: UserStore,
        usage: UsageWriter,
        ledger: Ledger,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._site = site
        self._users = users
        self._usage = usage
        self._ledger = ledger
        self._clock = clock
        # Without a plan there is no budget that the usage of other gateways could exceed.
        self._shared = site.gateway.database_url is not None and bool(site.plans)
        self.budgets = Budgets(site.plans, site.default_plan, shared=self._shared)
        self._changes = -1
        self._next_end = float("-inf")
        self._reread_at = float("inf")
        self._read_on = -1
        """The day of the last read of the sums."""
        self._noticed: set[tuple[str, str, int]] = set()
        self._waiting: list[tuple[str, PeriodState, int]] = []
        """Notices to record; they stay here while the database fails."""
        self._made_at: dict[tuple[str, str, int], float] = {}
        """Times of the recorded notices of the last :data:`NOTICE_KEPT_S`."""
        self._unreadable = False

    async def open(self) -> None:
        """Read users, new notices, the sums of this month and of the day before; raises :class:`StoreError`."""
        self.take(await asyncio.to_thread(self.changes))
        since = self._clock() - NOTICE_KEPT_S
        self._made_at = await asyncio.to_thread(self._users.notices_since, since)
        await self._read_month()

    def changes(self) -> tuple[int, list[Account]] | None:
        """Read the users if they changed, in the caller's thread; raises :class:`StoreError`."""
        return self._users.snapshot(self._changes)

    def take(self, found: tuple[int, list[Account]] | None) -> None:
        """Use the result of :meth:`changes`, and follow the ends of plans."""
        now = self._clock()
        if found is not None:
            self._changes = found[0]
            self.budgets.set_accounts(found[1])
        if found is not None or now >= self._next_end:
            plans: dict[str, Limits] = {**self.budgets.own_plans(now)}
            self._ledger.set_plans(plans, time.monotonic())
            self._next_end = self.budgets.next_end(now)

    async def step(self) -> None:
        """Wait, then read other gateways' usage, and record the budgets that reached a share."""
        await asyncio.sleep(STEP_S)
        try:
            if day_of(self._clock()) != self._read_on:
                # It also stores the sums of the day that is closed now, so that the next start is short.
                await self._read_month()
            elif time.monotonic() >= self._reread_at:
                await self._read_sums(day_of(self._clock()) - 1)
            self._waiting += self._new_notices()
            while self._waiting:
                user, state, percent = self._waiting[0]
                if await asyncio.to_thread(self._users.record_notice, user, state.key, percent):
                    self._made_at[user, state.key, percent] = self._clock()
                    fields = {"user": user, "period": state.key, "percent": percent}
                    LOG.warning("a user reached a share of its budget", extra={"fields": fields})
                self._waiting.pop(0)
            self._unreadable = False
        except StoreError as error:
            if not self._unreadable:
                # The last sums stay in force, and this gateway's own requests are counted.
                LOG.error("usage cannot be read, that of other gateways counts later: %s", error)  # noqa: TRY400
            self._unreadable = True

    def allows(self, key: Key, name: str) -> bool:
        """Return whether ``key`` and the plan of its user allow the model or role ``name``."""
        if not key.allows(name):
            return False
        plan = self.budgets.plan(key.account, self._clock())
        return plan is None or plan.models is None or name in plan.models

    def header(self, key: Key) -> bytes:
        """Return the header line of the budget of the key's user; empty without a budget."""
        return self.budgets.header(key.account, self._clock())

    def report(self, key: Key) -> dict[str, object]:
        """Return the plan, the limits and the used tokens of the key's user, for JSON."""
        now = self._clock()
        user = key.account
        account = self.budgets.account(user)
        name, plan = self.budgets.plan_name(user, now), self.budgets.plan(user, now)
        limits = self._ledger.limits(user)
        day, month = self.budgets.periods(user, now)
        own_plan = name is not None and name == account.plan_at(now)
        return {
            "object": "usage",
            "user": user,
            "plan": name,
            "plan_until": account.plan_until if own_plan else None,
            "price": plan.price if plan is not None else "",
            "models": list(plan.models) if plan is not None and plan.models is not None else None,
            "limits": {
                "requests_per_minute": limits.requests_per_minute,
                "tokens_per_minute": limits.tokens_per_minute,
                "requests_in_flight": limits.requests_in_flight,
            },
            "today": _period_report(day),
            "month": _period_report(month),
        }

    def used_ratios(self) -> dict[tuple[str, ...], float]:
        """Return the used share of the budgets of at most :data:`MOST_USERS` users, the largest ones."""
        limited = self.budgets.limited(self._clock())
        ratios = {
            user: max(state.used / state.limit for state in states if state.limit)
            for user, states in limited.items()
        }
        largest = sorted(ratios.items(), key=lambda item: (-item[1], item[0]))[:MOST_USERS]
        return {(user,): ratio for user, ratio in largest}

    def notice_times(self) -> dict[tuple[str, ...], float]:
        """Return the time of each notice of the last :data:`NOTICE_KEPT_S`, by user, period and percent.

        A notice is recorded once for each period and share, also if the gateway restarts.
        """
        since = self._clock() - NOTICE_KEPT_S
        self._made_at = {notice: at for notice, at in self._made_at.items() if at > since}
        return {(user, period, str(percent)): at for (user, period, percent), at in self._made_at.items()}

    async def _read_month(self) -> None:
        """Read the sums of this month and of the day before it."""
        await self._read_sums(month_of(day_of(self._clock())).first - 1)

    async def _read_sums(self, first: int) -> None:
        """Read the sums of the days from ``first`` to tomorrow."""
        now = self._clock()
        days = range(first, day_of(now) + 2)
        number, sums = await asyncio.to_thread(self._usage.days, days)
        self._read_on = day_of(now)
        self.budgets.load(sums, number, now)
        if self._shared:
            self._reread_at = time.monotonic() + REREAD_S

    def _new_notices(self) -> list[tuple[str, PeriodState, int]]:
        """Return the budgets that reached a share since the last call."""
        found = []
        changed, self.budgets.changed = self.budgets.changed, set()
        for user, states in self.budgets.limited(self._clock(), changed).items():
            for state in states:
                for percent in NOTICE_PERCENT:
                    notice = (user, state.key, percent)
                    if state.percent >= percent and notice not in self._noticed:
                        self._noticed.add(notice)
                        found.append((user, state, percent))
        return found


def _period_report(state: PeriodState) -> dict[str, object]:
    return {
        "used": state.used,
        "reserved": state.reserved,
        "limit": state.limit,
        "remaining": state.remaining,
        "used_percent": state.percent if state.limit is not None else None,
        "reset_at": state.reset_at,
    }
