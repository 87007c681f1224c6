"""Tokens of users by day: sums of closed days are stored, so that a start reads the usage records of two days only.

A day is closed when the day after it has ended. Sums that are missing, after a restore too, are computed again from
the usage records.

| sum of a day | event | next |
|---|---|---|
| absent | a gateway reads the day after it is closed | stored |
| stored | a usage record of the day is written | absent |
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, Engine, delete, insert, select
from sqlalchemy.exc import IntegrityError

from appliance.store.calendar import DAY_S, day_of
from appliance.store.schema import USAGE_DAYS
from appliance.store.usage import tokens_of_users

EVERYONE = ""
"""The name of the row that marks a stored day, also one without records; no user has this name."""


def is_closed(day: int, now: float) -> bool:
    """Return whether requests of ``day`` have ended at ``now``, in seconds since the epoch."""
    return day < day_of(now) - 1


def tokens_of_days(connection: Connection, days: Iterable[int]) -> tuple[dict[int, dict[str, int]], set[int]]:
    """Return the tokens of users by day, and the days that were computed from usage records."""
    wanted = [*days]
    found: dict[int, dict[str, int]] = {}
    for row in connection.execute(select(USAGE_DAYS).where(USAGE_DAYS.c.day.in_(wanted))):
        found.setdefault(row.day, {})[row.user] = int(row.tokens)
    stored = {day for day, users in found.items() if EVERYONE in users}
    sums = {day: {user: tokens for user, tokens in found[day].items() if user != EVERYONE} for day in stored}
    computed = {*wanted} - stored
    for day in computed:
        sums[day] = tokens_of_users(connection, day * DAY_S, (day + 1) * DAY_S)
    return sums, computed


def store_days(engine: Engine, sums: dict[int, dict[str, int]]) -> None:
    """Store the sums of closed days; another gateway may have stored one in the same moment."""
    for day, users in sums.items():
        rows = [{"day": day, "user": user, "tokens": tokens} for user, tokens in users.items()]
        rows.append({"day": day, "user": EVERYONE, "tokens": sum(users.values())})
        try:
            with engine.begin() as connection:
                connection.execute(insert(USAGE_DAYS), rows)
        except IntegrityError:
            continue


def forget_days(connection: Connection, times: Iterable[float]) -> None:
    """Remove the stored sums of the days in which requests began at ``times``: their records are written now.

    A day can have a sum already if a record is late, or if a clock was ahead.
    """
    connection.execute(delete(USAGE_DAYS).where(USAGE_DAYS.c.day.in_({day_of(at) for at in times})))
