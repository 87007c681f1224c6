"""Days and months in UTC, the periods of budgets and bills. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

from appliance.errors import UsageError

DAY_S = 86400
EPOCH = date(1970, 1, 1)

MOST_DAY = (date(9999, 12, 1) - EPOCH).days
"""The last day whose month has a next one."""

MONTH = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True)
class Month:
    """A calendar month: its name ``YYYY-MM``, its first day and that of the next one, counted from the epoch."""

    name: str
    first: int
    after: int

    @property
    def since(self) -> int:
        """Its start, in seconds since the epoch."""
        return self.first * DAY_S

    @property
    def until(self) -> int:
        """The start of the next one, in seconds since the epoch."""
        return self.after * DAY_S


def day_of(at: float) -> int:
    """Return the day of ``at`` (seconds since the epoch), counted from the epoch."""
    return int(min(max(at // DAY_S, 0), MOST_DAY - 1))


def day_name(day: int) -> str:
    """Return ``day``, counted from the epoch, as ``YYYY-MM-DD``."""
    return (EPOCH + timedelta(days=day)).isoformat()


@lru_cache(maxsize=64)
def month_of(day: int) -> Month:
    """Return the month of ``day``, counted from the epoch."""
    first = (EPOCH + timedelta(days=day)).replace(day=1)
    after = (first + timedelta(days=32)).replace(day=1)
    return Month(f"{first:%Y-%m}", (first - EPOCH).days, (after - EPOCH).days)


def month_named(text: str, option: str) -> Month:
    """Return the month ``YYYY-MM``; raises :class:`UsageError` that begins with ``option``."""
    if not MONTH.fullmatch(text) or not "1970" <= text[:4] < "9999":
        raise UsageError(f"{option}: {text[:40]!r} is not a month; write it like 2026-11")
    return month_of((date.fromisoformat(f"{text}-01") - EPOCH).days)


def moment_of(text: str, option: str) -> float:
    """Return the start of the day ``YYYY-MM-DD`` in UTC, in seconds since the epoch.

    Raises :class:`UsageError` that begins with ``option``.
    """
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise UsageError(f"{option}: {text[:40]!r} is not a date; write it like 2026-12-31") from None
