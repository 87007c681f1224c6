"""Plans for Telegram Stars: what the bot may offer a user, and the payments that it reports.

Only the socket for the Telegram bot has these paths: the gateway's process owns the users, and the kernel names the
account of the bot. Offers need a valid key, as every request for a user. A payment needs none. It
counts also after the key was revoked, and for a plan that is no longer for sale.

| path | body | response |
|---|---|---|
| ``GET /telegram/plans`` | | the present plan of the key's user, and the plans for sale |
| ``POST /telegram/payments`` | ``id``, ``user``, ``plan``, ``days``, ``amount`` | the user's plan; once an id |
| ``POST /telegram/refunds`` | ``id`` | the user's plan; once an id |
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

import msgspec

from appliance.contract.model import Site
from appliance.errors import (
    EngineUnavailableError,
    InvalidRequestError,
    NotFoundError,
    RequestError,
    StoreError,
    UsageError,
)
from appliance.gateway.late_response import LateResponses, decode_fields
from appliance.http1.types import ClientResponder, Request
from appliance.store.models import Account, Key, PlanPayment
from appliance.store.plans import account_plan
from appliance.store.users import UserStore

LOG = logging.getLogger(__name__)

PLANS, PAYMENTS, REFUNDS = "/telegram/plans", "/telegram/payments", "/telegram/refunds"
SALE_METHODS = {PLANS: "GET", PAYMENTS: "POST", REFUNDS: "POST"}
"""The paths and the method of each."""

CURRENCY = "XTR"
"""Telegram's name for Stars."""


class _Paid(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a payment."""

    id: str
    user: str
    plan: str
    days: int
    amount: int


class _Refunded(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a refund."""

    id: str


def offers(site: Site, account: Account, now: float) -> dict[str, object]:
    """Return the present plan of ``account`` and the plans that it may buy, for JSON.

    A user whose own plan has no end gets no offer: a payment would give that plan an end.
    """
    name, plan = account_plan(site, account, now)
    own = name is not None and name == account.plan_at(now)
    endless = own and account.plan_until is None
    return {
        "object": "plans",
        "plan": name,
        "plan_until": account.plan_until if own else None,
        "price": plan.price if plan is not None else "",
        "offers": [
            {"plan": one, "stars": found.stars, "days": found.stars_days, "price": found.price}
            for one, found in site.plans.items()
            if found.stars is not None and not endless
        ],
    }


class PlanSales:
    """The requests for plans and payments of one gateway.

    Args:
        site: The site with its plans.
        users: Store of the users.
        key_of: Returns the valid key that a request names; raises :class:`RequestError`.
        clock: Time in seconds since the epoch.
    """

    def __init__(
        self,
        site: Site,
        users: UserStore,
        key_of: Callable[[Request], Key],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._site = site
        self._users = users
        self._key_of = key_of
        self._clock = clock
        self._late = LateResponses()

    def handle(self, request: Request, client: ClientResponder) -> None:
        """Respond to a complete request later; raises :class:`RequestError` for a rejection."""
        work: Callable[[], dict[str, object]]
        if request.path == PLANS:
            key = self._key_of(request)
            # An end user shares the plan of its account, which only the account's owner may buy.
            work = partial(self._offers, key.account, for_sale=key.user == key.account)
        elif request.path == PAYMENTS:
            work = partial(self._record, decode_fields(request.body, _Paid))
        else:
            work = partial(self._refund, decode_fields(request.body, _Refunded).id)
        self._late.start(request, client, asyncio.to_thread(work))

    def _offers(self, user: str, *, for_sale: bool) -> dict[str, object]:
        try:
            account = self._users.get(user)
        except UsageError as error:
            raise NotFoundError(str(error)) from None
        except StoreError as error:
            raise _unavailable(error) from error
        found = offers(self._site, account, self._clock())
        return found if for_sale else found | {"offers": []}

    def _record(self, paid: _Paid) -> dict[str, object]:
        if paid.plan not in self._site.plans:
            raise NotFoundError(f"The site has no plan {paid.plan[:80]!r}")
        payment = PlanPayment(paid.id, paid.user, paid.plan, paid.days, paid.amount, CURRENCY)
        try:
            counted, account = self._users.extend_plan(payment)
        except UsageError as error:
            raise InvalidRequestError(str(error)) from None
        except StoreError as error:
            raise _unavailable(error) from error
        if counted:
            LOG.info("a payment extended a plan", extra={"fields": {"user": paid.user, "plan": paid.plan}})
        return _account_body(account, counted=counted)

    def _refund(self, payment_id: str) -> dict[str, object]:
        try:
            counted, account = self._users.refund(payment_id)
        except UsageError as error:
            raise NotFoundError(str(error)) from None
        except StoreError as error:
            raise _unavailable(error) from error
        return _account_body(account, counted=counted)


def _account_body(account: Account, *, counted: bool) -> dict[str, object]:
    return {
        "object": "plan_payment",
        "counted": counted,
        "user": account.name,
        "plan": account.plan,
        "plan_until": account.plan_until,
    }


def _unavailable(error: StoreError) -> RequestError:
    LOG.error("a payment is not recorded: %s", error)
    return EngineUnavailableError("The database cannot be used now", retry_after=5)
