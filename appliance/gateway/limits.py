"""What users and keys have left of their limits: token buckets per minute, and a count in flight.

Pure: time is given. A key may have limits of its own; they narrow its user's, never widen them.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.config import Limits
from appliance.errors import RateLimitError
from appliance.gateway.keys import Key

WINDOW_S = 60.0


@dataclass(slots=True)
class Bucket:
    """A minute's allowance that refills steadily. ``level`` may go below zero: tokens are known as they come."""

    size: float
    level: float
    at: float

    def refill(self, now: float) -> None:
        """Bring the level up to ``now``; a clock that went back adds nothing."""
        if now > self.at:
            level = self.level + (now - self.at) * self.size / WINDOW_S
            self.level = min(self.size, level)
        self.at = now

    def wait(self, amount: float) -> float:
        """Seconds until ``amount`` is there; 0 when it is."""
        return max(0.0, (amount - self.level) * WINDOW_S / self.size)


@dataclass(slots=True)
class Allowance:
    """What one user, or one key, has left."""

    whose: str
    requests: Bucket | None
    tokens: Bucket | None
    most_in_flight: int | None
    in_flight: int = 0

    def check(self, now: float) -> None:
        """Raise :class:`RateLimitError`, with the seconds to wait, where one more request is too many."""
        if self.most_in_flight is not None and self.in_flight >= self.most_in_flight:
            message = f"{self.whose} {self.in_flight} requests running, your limit; wait for one to end"
            raise RateLimitError(message, retry_after=1)
        if self.requests is not None:
            self._need(self.requests, 1.0, "requests", now)
        if self.tokens is not None:
            self._need(self.tokens, 0.0, "tokens", now)

    def _need(self, bucket: Bucket, amount: float, what: str, now: float) -> None:
        bucket.refill(now)
        if bucket.level < amount:
            wait = bucket.wait(amount)
            message = f"{self.whose} used up {bucket.size:.0f} {what} per minute; try again in {wait:.0f} s"
            raise RateLimitError(message, retry_after=wait)

    def begin(self) -> None:
        """Count a request in."""
        if self.requests is not None:
            self.requests.level -= 1
        self.in_flight += 1

    def give_back(self, now: float) -> None:
        """Count a request as never begun: nothing was generated for it, whoever refused it."""
        if self.requests is not None:
            self.requests.refill(now)
            self.requests.level = min(self.requests.size, self.requests.level + 1)

    def charge(self, tokens: int, now: float) -> None:
        """Count ``tokens`` that were used; negative where an estimate was too high."""
        if self.tokens is not None:
            self.tokens.refill(now)
            self.tokens.level -= tokens


class Ledger:
    """All allowances, of users and of the keys that have limits of their own."""

    def __init__(self, default: Limits, users: dict[str, Limits]) -> None:
        self._default = default
        self._limits = users
        self._users: dict[str, Allowance] = {}
        self._keys: dict[str, tuple[Key, Allowance]] = {}

    def weight(self, key: Key) -> float:
        """How much of a busy engine is this key's, against weight 1."""
        return self._limits.get(key.user, self._default).weight if key.weight is None else key.weight

    def admit(self, key: Key, now: float) -> tuple[Allowance, ...]:
        """Count a request of ``key`` in: what to give to :meth:`finish`. Raises :class:`RateLimitError`."""
        user = self._users.get(key.user) or self._open(key.user, now)
        user.check(now)
        if not key.limited:
            user.begin()
            return (user,)
        own = self._own(key, now)
        own.check(now)
        user.begin()
        own.begin()
        return (user, own)

    @staticmethod
    def charge(allowances: tuple[Allowance, ...], tokens: int, now: float) -> None:
        """Count tokens of a request while it runs: many at once must not run on one minute's allowance."""
        for allowance in allowances:
            allowance.charge(tokens, now)

    @staticmethod
    def finish(allowances: tuple[Allowance, ...], tokens: int, now: float, *, refused: bool = False) -> None:
        """Count a request out, with the tokens it used that were not charged; a refused one costs nothing."""
        for allowance in allowances:
            allowance.in_flight -= 1
            allowance.charge(tokens, now)
            if refused:
                allowance.give_back(now)

    def _open(self, user: str, now: float) -> Allowance:
        limits = self._limits.get(user, self._default)
        made = self._users[user] = Allowance(
            "You have",
            _bucket(limits.requests_per_minute, now),
            _bucket(limits.tokens_per_minute, now),
            limits.requests_in_flight,
        )
        return made

    def _own(self, key: Key, now: float) -> Allowance:
        known = self._keys.get(key.id)
        if known is not None and known[0] == key:
            return known[1]
        requests = _bucket(key.requests_per_minute, now)
        tokens = _bucket(key.tokens_per_minute, now)
        if known is None:
            own = Allowance("This key has", requests, tokens, key.requests_in_flight)
        else:
            # Its limits were changed; what runs is still counted where it was.
            own = known[1]
            own.requests, own.tokens, own.most_in_flight = requests, tokens, key.requests_in_flight
        self._keys[key.id] = (key, own)
        return own


def _bucket(per_minute: int | None, now: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, per_minute, now)
