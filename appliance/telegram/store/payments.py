"""Orders of plans, and their payments with Telegram Stars.

| payment | event | next |
|---|---|---|
| | the update of a payment arrives, the first time | paid, or unclear without its order |
| paid | the gateway has recorded it | recorded |
| paid | the gateway refuses it for good: the user or the plan does not exist any more | unclear |
| paid | the gateway cannot be reached, or the bot stops | paid: tried again |
| recorded, unclear | the operator refunds it | refunded |

The gateway counts each payment once. So a payment that was recorded before the bot stored that is sent again.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or

from appliance.telegram.store.database import BotDatabase
from appliance.telegram.store.links import PersonLink
from appliance.telegram.store.schema import ORDERS, STAR_PAYMENTS, UPDATES
from appliance.telegram.updates import ChatPlace, PaidInvoice

KEEP_ORDERS_S = 90 * 86400.0
"""Seconds for which an invoice may be paid."""


@dataclass(frozen=True, slots=True)
class PlanOffer:
    """A plan for sale: ``days`` days for ``stars`` Stars; ``price`` is text of the operator."""

    plan: str
    stars: int
    days: int
    price: str = ""


@dataclass(frozen=True, slots=True)
class PlanOrder:
    """An invoice that a person got."""

    id: int
    token: str
    person: int
    user: str
    plan: str
    stars: int
    days: int
    created_at: float

    @property
    def payload(self) -> str:
        """The text by which Telegram's updates name the order."""
        return f"order:{self.id}:{self.token}"


@dataclass(frozen=True, slots=True)
class StarPayment:
    """A payment. ``user``, ``plan`` and ``days`` are ``None`` if its order is unknown."""

    charge: str
    person: int
    chat_id: int
    thread_id: int
    language: str
    user: str | None
    plan: str | None
    days: int | None
    stars: int
    paid_at: float
    state: str

    @property
    def id(self) -> str:
        """The id of the payment at the gateway."""
        return f"stars:{self.charge}"[:200]

    @property
    def place(self) -> ChatPlace:
        """The chat of the payment."""
        return ChatPlace(self.chat_id, self.thread_id, private=self.chat_id > 0)


class PaymentStore:
    """Orders and payments."""

    def __init__(self, database: BotDatabase) -> None:
        self._database = database

    def order(self, link: PersonLink, offer: PlanOffer, now: float) -> PlanOrder:
        """Store a new order and return it; orders that are too old are removed."""
        values: dict[str, Any] = {
            "token": secrets.token_urlsafe(12),
            "person": link.person,
            "user": link.user,
            "plan": offer.plan,
            "stars": offer.stars,
            "days": offer.days,
            "created_at": now,
        }
        with self._database.writing() as connection:
            connection.execute(delete(ORDERS).where(ORDERS.c.created_at < now - KEEP_ORDERS_S))
            inserted = connection.execute(insert(ORDERS).values(values)).inserted_primary_key
        return PlanOrder(id=int(inserted[0]) if inserted is not None else 0, **values)

    def find(self, payload: str) -> PlanOrder | None:
        """Return the order that ``payload`` names; ``None`` for an unknown one."""
        with self._database.reading() as connection:
            return _order(connection, payload)

    def receive(self, paid: PaidInvoice, now: float) -> StarPayment | None:
        """Store a payment in the transaction that begins its update; ``None`` if it was stored before."""
        with self._database.writing() as connection:
            connection.execute(update(UPDATES).where(UPDATES.c.id == paid.update_id).values(payload=None))
            order = _order(connection, paid.payload)
            values: dict[str, Any] = {
                "charge": paid.charge,
                "person": paid.person,
                "chat_id": paid.place.chat_id,
                "thread_id": paid.place.thread_id,
                "language": paid.language,
                "user": order.user if order is not None else None,
                "plan": order.plan if order is not None else None,
                "days": order.days if order is not None else None,
                "stars": paid.stars,
                "paid_at": now,
                "state": "paid" if order is not None else "unclear",
            }
            added = connection.execute(insert_or(STAR_PAYMENTS).values(values).on_conflict_do_nothing()).rowcount
        return StarPayment(**values) if added else None

    def unrecorded(self) -> list[StarPayment]:
        """Return the payments that the gateway has not recorded yet, oldest first."""
        chosen = select(STAR_PAYMENTS).where(STAR_PAYMENTS.c.state == "paid").order_by(STAR_PAYMENTS.c.paid_at)
        with self._database.reading() as connection:
            return [StarPayment(**row._asdict()) for row in connection.execute(chosen)]

    def all(self) -> list[StarPayment]:
        """Return all payments, newest first."""
        chosen = select(STAR_PAYMENTS).order_by(STAR_PAYMENTS.c.paid_at.desc())
        with self._database.reading() as connection:
            return [StarPayment(**row._asdict()) for row in connection.execute(chosen)]

    def get(self, charge: str) -> StarPayment | None:
        """Return a payment by the id of its charge."""
        with self._database.reading() as connection:
            row = connection.execute(select(STAR_PAYMENTS).where(STAR_PAYMENTS.c.charge == charge)).first()
        return None if row is None else StarPayment(**row._asdict())

    def set_state(self, charge: str, state: str) -> None:
        """Store the state of a payment."""
        with self._database.writing() as connection:
            connection.execute(update(STAR_PAYMENTS).where(STAR_PAYMENTS.c.charge == charge).values(state=state))


def _order(connection: Connection, payload: str) -> PlanOrder | None:
    kind, _, rest = payload.partition(":")
    number, _, token = rest.partition(":")
    if kind != "order" or not number.isascii() or not number.isdigit() or len(number) > 15:
        return None
    chosen = select(ORDERS).where(ORDERS.c.id == int(number), ORDERS.c.token == token)
    row = connection.execute(chosen).first()
    return None if row is None else PlanOrder(**row._asdict())
