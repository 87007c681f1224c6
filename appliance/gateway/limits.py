"""What each user has left of his limits: token buckets per minute, and a count in flight. Pure: time is given."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.config import Limits
from appliance.errors import RateLimitError

WINDOW_S = 60.0


@dataclass(slots=True)
class Bucket:
    """A minute's allowance that refills steadily. ``level`` may go below zero: tokens are known afterwards."""

    size: float
    level: float
    at: float

    def refill(self, now: float) -> None:
        """Bring the level up to ``now``; a clock that went back adds nothing."""
        self.level = min(self.size, self.level + max(0.0, now - self.at) * self.size / WINDOW_S)
        self.at = now

    def wait(self, amount: float) -> float:
        """Seconds until ``amount`` is there; 0 when it is."""
        return max(0.0, (amount - self.level) * WINDOW_S / self.size)


@dataclass(slots=True)
class Allowance:
    """One user's state."""

    limits: Limits
    requests: Bucket | None
    tokens: Bucket | None
    in_flight: int = 0


class Ledger:
    """All users' allowances."""

    def __init__(self, default: Limits, users: dict[str, Limits]) -> None:
        self._default = default
        self._limits = users
        self._users: dict[str, Allowance] = {}

    def admit(self, user: str, now: float) -> None:
        """Count a request of ``user`` in; raises :class:`RateLimitError` with the seconds to wait."""
        allowance = self._users.get(user) or self._open(user, now)
        limits = allowance.limits
        if limits.requests_in_flight is not None and allowance.in_flight >= limits.requests_in_flight:
            message = f"You have {allowance.in_flight} requests running, your limit; wait for one to end"
            raise RateLimitError(message, retry_after=1)
        for bucket, amount, what in (
            (allowance.requests, 1.0, "requests"),
            (allowance.tokens, 0.0, "tokens"),
        ):
            if bucket is not None:
                bucket.refill(now)
                if wait := bucket.wait(amount):
                    message = f"You used up your {bucket.size:.0f} {what} per minute; try again in {wait:.0f} s"
                    raise RateLimitError(message, retry_after=wait)
        if allowance.requests is not None:
            allowance.requests.level -= 1
        allowance.in_flight += 1

    def finish(self, user: str, tokens: int, now: float) -> None:
        """Count a request of ``user`` out, with the tokens it used."""
        allowance = self._users[user]
        allowance.in_flight -= 1
        if allowance.tokens is not None:
            allowance.tokens.refill(now)
            allowance.tokens.level -= tokens

    def _open(self, user: str, now: float) -> Allowance:
        limits = self._limits.get(user, self._default)
        allowance = self._users[user] = Allowance(
            limits, _bucket(limits.requests_per_minute, now), _bucket(limits.tokens_per_minute, now)
        )
        return allowance


def _bucket(per_minute: int | None, now: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, per_minute, now)
