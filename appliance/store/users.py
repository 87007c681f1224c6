"""Users at rest: their plans, the invites that create them, and the payments that extend their plans.

A user with a key and no row of its own has the site's default plan; its first change creates the row. Every change
is counted, so that gateways can poll for it. The store does not know the plans of a site: callers check the names.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from appliance.errors import UsageError
from appliance.store.calendar import DAY_S
from appliance.store.database import open_database, refused
from appliance.store.keys import check_user, count_change, new_key
from appliance.store.models import Account, PlanPayment
from appliance.store.schema import BUDGET_NOTICES, CHANGES, INVITES, KEYS, PAYMENTS, USERS

LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,4})?")
"""A language, such as ``en`` or ``pt-BR``."""

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""A control character, such as a new line."""

CHANGEABLE = frozenset({"plan", "plan_until", "note", "language"})
MAX_NOTE = 200
MAX_PAYMENT = 200
MOST_DAYS = 36500
LATEST = 253_402_300_799
"""The last second of the year 9999, since the epoch."""


@dataclass(frozen=True, slots=True)
class Redeemed:
    """The user that an invite created, and its first key, which is not shown again."""

    account: Account
    key: str


class UserStore:
    """The users of one site. Every method raises :class:`StoreError` if the database fails.

    ``clock`` returns seconds since the epoch.
    """

    def __init__(self, folder: Path, url: str | None = None, clock: Callable[[], float] = time.time) -> None:
        self._engine = open_database(folder, url)
        self._clock = clock

    def create(self, name: str, **values: Any) -> str:
        """Create the user ``name`` and its first key; return the key. ``values`` as in :meth:`change`.

        Raises :class:`UsageError` if the name is taken, also by a key alone, or a value is not valid.
        """
        checked = _checked({"plan": None, **values})
        with self._writing() as connection:
            return self._create(connection, name, checked)

    def change(self, name: str, **values: Any) -> Account:
        """Change columns of :data:`CHANGEABLE` of a user and return it.

        Raises :class:`UsageError` if the user does not exist or a value is not valid.
        """
        checked = _checked(values)
        with self._writing() as connection:
            self._need(connection, name)
            if checked.get("plan_until") is not None and "plan" not in checked:
                _checked({"plan": _found(connection, name).plan, **checked})
            if checked:
                connection.execute(update(USERS).where(USERS.c.name == name).values(checked))
            return _found(connection, name)

    def set_disabled(self, name: str, *, disabled: bool) -> Account:
        """Disable a user, whose keys are not valid any more, or enable it; return it.

        Raises :class:`UsageError` if the user does not exist.
        """
        with self._writing() as connection:
            count_change(connection, "keys")
            self._need(connection, name)
            present = USERS.c.disabled_at.is_(None) if disabled else USERS.c.disabled_at.is_not(None)
            connection.execute(
                update(USERS)
                .where(USERS.c.name == name, present)
                .values(disabled_at=self._clock() if disabled else None)
            )
            return _found(connection, name)

    def extend_plan(self, payment: PlanPayment) -> tuple[bool, Account]:
        """Give the user of ``payment`` its plan for its days, once for each id.

        The days follow the present end of the same plan; another plan is replaced at once. A plan without an end
        keeps none.

        Returns:
            Whether this call extended the plan, false if the payment was counted before; and the user.

        Raises:
            UsageError: The user does not exist, a value is not valid, or another user has made the payment.
        """
        if not 0 < payment.days <= MOST_DAYS:
            raise UsageError(f"days is {payment.days}; it must be from 1 to {MOST_DAYS}")
        _check_payment(payment.id)
        with self._writing() as connection:
            # The counted change is locked until the end: of two processes, the second one finds the payment.
            if (counted := _payment(connection, payment.id)) is not None:
                if counted.user != payment.user:
                    raise UsageError(f"the payment {payment.id[:80]!r} is one of another user")
                return False, _found_or_unknown(connection, payment.user)
            self._need(connection, payment.user)
            before, now = _found(connection, payment.user), self._clock()
            same = before.plan == payment.plan
            begin = max(now, before.plan_until or now) if same else now
            until = begin + payment.days * DAY_S
            checked = _checked({"plan": payment.plan, "plan_until": until})
            if same and before.plan_until is None:
                checked["plan_until"] = None
            connection.execute(
                insert(PAYMENTS).values(
                    id=payment.id,
                    user=payment.user,
                    plan=payment.plan,
                    until=until,
                    made_at=now,
                    days=payment.days,
                    amount=payment.amount,
                    currency=payment.currency,
                )
            )
            connection.execute(update(USERS).where(USERS.c.name == payment.user).values(checked))
            return True, _found(connection, payment.user)

    def refund(self, payment_id: str) -> tuple[bool, Account]:
        """Record that a payment was returned, once, and take its days from the user's plan.

        Returns:
            Whether this call recorded it, and the user.

        Raises:
            UsageError: There is no such payment.
        """
        _check_payment(payment_id)
        with self._writing() as connection:
            paid = _payment(connection, payment_id)
            if paid is None:
                raise UsageError(f"payment {payment_id[:80]!r} does not exist")
            account = _found_or_unknown(connection, paid.user)
            if paid.refunded_at is not None:
                return False, account
            now = self._clock()
            connection.execute(update(PAYMENTS).where(PAYMENTS.c.id == payment_id).values(refunded_at=now))
            if account.plan == paid.plan and account.plan_until is not None and paid.days is not None:
                until = max(now, account.plan_until - paid.days * DAY_S)
                connection.execute(
                    update(USERS).where(USERS.c.name == paid.user).values(plan_until=min(until, account.plan_until))
                )
            return True, _found_or_unknown(connection, paid.user)

    def invite(self, made_by: str, *, plan: str | None, days: int | None, expires_in_s: float) -> str:
        """Create a code for one new user and return it; only its digest is stored.

        Args:
            made_by: Name of its maker.
            plan: Plan of the new user; ``None`` for the site's default.
            days: Length of the plan from the use of the code; ``None`` for a plan without an end.
            expires_in_s: Seconds until the code is not valid any more.
        """
        _checked({"plan": plan})
        if days is not None and not 0 < days <= MOST_DAYS:
            raise UsageError(f"days is {days}; it must be from 1 to {MOST_DAYS}; omit it for a plan without an end")
        if days is not None and plan is None:
            raise UsageError("days needs a plan; the default plan has no end")
        now = self._clock()
        if not 0 < expires_in_s <= LATEST - now:
            raise UsageError("the code must expire after now, and before the year 10000")
        code = f"invite-{secrets.token_urlsafe(24)}"
        row = {
            "digest": _digest(code),
            "plan": plan,
            "days": days,
            "made_by": made_by,
            "made_at": now,
            "expires": now + expires_in_s,
        }
        with self._writing() as connection:
            connection.execute(insert(INVITES).values(row))
        return code

    def redeem(self, code: str, name: str) -> Redeemed:
        """Create the user ``name`` with its first key by an invite, which is used up.

        Raises :class:`UsageError` for a code that is unknown, used or expired, and for a name that is taken or not
        valid. The code stays as it was then.
        """
        check_user(name)
        now = self._clock()
        with self._writing() as connection:
            # Claimed by one statement: of two processes, one finds the code used.
            claimed = connection.execute(
                update(INVITES)
                .where(INVITES.c.digest == _digest(code), INVITES.c.used_at.is_(None), INVITES.c.expires > now)
                .values(used_by=name, used_at=now)
            )
            if claimed.rowcount != 1:
                raise UsageError("the code is not valid, was used, or has expired; request another one")
            invite = connection.execute(
                select(INVITES.c.plan, INVITES.c.days).where(INVITES.c.digest == _digest(code))
            ).one()
            until = None if invite.days is None else now + invite.days * DAY_S
            key = self._create(connection, name, {"plan": invite.plan, "plan_until": until})
            return Redeemed(_found(connection, name), key)

    def get(self, name: str) -> Account:
        """Return a user; raises :class:`UsageError` if it does not exist."""
        with self._reading() as connection:
            row = connection.execute(select(USERS).where(USERS.c.name == name)).first()
            if row is not None:
                return _account(row)
            first = _first_key(connection, name)
        if first is None:
            raise _unknown(name)
        return Account(name, created_at=first)

    def all(self) -> list[Account]:
        """Return all users by name, those without a row of their own too."""
        with self._reading() as connection:
            found = {account.name: account for account in map(_account, connection.execute(select(USERS)))}
            for name, created_at in connection.execute(
                select(KEYS.c.user, KEYS.c.created_at).order_by(KEYS.c.created_at)
            ):
                found.setdefault(name, Account(name, created_at=created_at))
        return [found[name] for name in sorted(found)]

    def snapshot(self, since: int) -> tuple[int, list[Account]] | None:
        """Return the number of changes and the users that have a row.

        Returns ``None`` if nothing changed after change number ``since``.
        """
        with self._reading() as connection:
            number = connection.execute(select(CHANGES.c.number).where(CHANGES.c.what == "users")).scalar_one()
            if number == since:
                return None
            return int(number), [_account(row) for row in connection.execute(select(USERS))]

    def record_notice(self, name: str, period: str, percent: int) -> bool:
        """Record that a user reached ``percent`` of its budget of ``period``; return false if that is recorded."""
        row = {"user": name, "period": period, "percent": percent, "made_at": self._clock()}
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(BUDGET_NOTICES).values(row))
        except IntegrityError:
            return False
        except SQLAlchemyError as error:
            raise refused(error, self._engine) from error
        return True

    def notices(self, periods: tuple[str, ...]) -> dict[tuple[str, str], int]:
        """Return the largest recorded percent of each user and period of ``periods``."""
        found: dict[tuple[str, str], int] = {}
        with self._reading() as connection:
            rows = connection.execute(select(BUDGET_NOTICES).where(BUDGET_NOTICES.c.period.in_(periods)))
            for user, period, percent, _ in rows:
                found[user, period] = max(percent, found.get((user, period), 0))
        return found

    def notices_since(self, since: float) -> dict[tuple[str, str, int], float]:
        """Return the times of the notices made after ``since``, by user, period and percent."""
        with self._reading() as connection:
            rows = connection.execute(select(BUDGET_NOTICES).where(BUDGET_NOTICES.c.made_at > since))
            return {(row.user, row.period, row.percent): float(row.made_at) for row in rows}

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _create(self, connection: Connection, name: str, values: dict[str, Any]) -> str:
        key, row = new_key(name, {})
        count_change(connection, "keys")
        if _row(connection, name) is not None or _first_key(connection, name) is not None:
            raise UsageError(f"the name {name} is taken; choose another one")
        connection.execute(insert(USERS).values(name=name, created_at=self._clock(), **values))
        connection.execute(insert(KEYS).values(row))
        return key

    def _need(self, connection: Connection, name: str) -> None:
        """Create the row of a user that has a key alone; raises :class:`UsageError` for an unknown user."""
        if _row(connection, name) is not None:
            return
        first = _first_key(connection, name)
        if first is None:
            raise _unknown(name)
        connection.execute(insert(USERS).values(name=name, created_at=first))

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                count_change(connection, "users")
                yield connection
        except SQLAlchemyError as error:
            raise refused(error, self._engine) from error

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise refused(error, self._engine) from error


def _digest(code: str) -> bytes:
    return sha256(code.encode("utf-8", "surrogatepass")).digest()


def _row(connection: Connection, name: str) -> Row[Any] | None:
    return connection.execute(select(USERS).where(USERS.c.name == name)).first()


def _found(connection: Connection, name: str) -> Account:
    return _account(connection.execute(select(USERS).where(USERS.c.name == name)).one())


def _found_or_unknown(connection: Connection, name: str) -> Account:
    """Return a user; one without a row has only its name."""
    row = _row(connection, name)
    return Account(name) if row is None else _account(row)


def _payment(connection: Connection, payment_id: str) -> Row[Any] | None:
    return connection.execute(select(PAYMENTS).where(PAYMENTS.c.id == payment_id)).first()


def _check_payment(payment_id: str) -> None:
    if not 0 < len(payment_id) <= MAX_PAYMENT:
        raise UsageError(f"the id of a payment has 1 to {MAX_PAYMENT} characters")


def _first_key(connection: Connection, name: str) -> float | None:
    """Return the time at which the first key of a user was created; ``None`` without a key."""
    statement = select(KEYS.c.created_at).where(KEYS.c.user == name).order_by(KEYS.c.created_at)
    found = connection.execute(statement.limit(1)).scalar()
    return None if found is None else float(found)


def _unknown(name: str) -> UsageError:
    return UsageError(f"user {name[:80]!r} does not exist; `appliance users list` shows them")


def _account(row: Row[Any]) -> Account:
    return Account(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` as columns; raises :class:`UsageError` that names the value that is not valid."""
    unknown = sorted(values.keys() - CHANGEABLE)
    if unknown:
        raise UsageError(f"a user has no {unknown[0]!r}; it has {', '.join(sorted(CHANGEABLE))}")
    found = dict(values)
    if "plan" in found:
        # A new plan has no end unless the caller names one.
        found.setdefault("plan_until", None)
    until = found.get("plan_until")
    if until is not None and not 0 <= until <= LATEST:
        raise UsageError(f"plan_until is {until:g}; it must be a time from 1970 to 9999")
    if "plan" in found and found["plan"] is None and until is not None:
        raise UsageError("plan_until needs a plan; the default plan has no end")
    note, language = found.get("note") or "", found.get("language") or ""
    if len(note) > MAX_NOTE or CONTROL.search(note):
        raise UsageError(f"the note must have at most {MAX_NOTE} printable characters")
    if language and not LANGUAGE.fullmatch(language):
        raise UsageError(f"{language[:20]!r} is not a language; write it like en or pt-BR")
    for name in ("note", "language"):
        if name in found:
            found[name] = found[name] or ""
    return found
