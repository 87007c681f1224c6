"""Limits of users and keys: token buckets per minute, and a count of requests in flight.

Pure: the caller supplies the time. A key may have limits of its own; they narrow its user's limits and never widen
them. Each end user of a key that is marked ``end_users`` has an allowance like a user's. The usage of all of them
also counts for the key, and for the key's user if the site gives that user limits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from appliance.contract.model import Limits
from appliance.errors import RateLimitError
from appliance.store.models import Key

WINDOW_S = 60.0

MAX_END_USERS = 10_000
"""Allowances of end users that are kept. Beyond this number, the ledger discards those that equal a new one; any in
excess have requests in flight or have not refilled."""

INSPECTED = 8
"""Allowances that the ledger inspects for each new end user: more than one, so that an excess shrinks."""


Figures: TypeAlias = tuple[int | None, int | None, int | None]
"""A key's own limits: requests per minute, tokens per minute, requests in flight."""


@dataclass(slots=True)
class Bucket:
    """The allowance of a minute, which refills steadily.

    ``level`` may become negative: the number of tokens is known only while they are generated.
    """

    size: float
    level: float
    at: float

    def refill(self, now: float) -> None:
        """Refill the level up to ``now``; a clock that was set back adds nothing."""
        if now > self.at:
            level = self.level + (now - self.at) * self.size / WINDOW_S
            self.level = min(self.size, level)
        self.at = now

    def full(self, now: float) -> bool:
        """Return whether the level equals that of a new bucket at ``now`` (seconds)."""
        self.refill(now)
        return self.level == self.size

    def wait(self, amount: float) -> float:
        """Return the seconds until ``amount`` is available; 0 if it is."""
        return max(0.0, (amount - self.level) * WINDOW_S / self.size)


@dataclass(slots=True)
class Allowance:
    """The remaining limits of one user or one key."""

    requests: Bucket | None
    tokens: Bucket | None
    most_in_flight: int | None
    in_flight: int = 0

    def check(self, now: float, whose: str) -> None:
        """Raise :class:`RateLimitError`, with the seconds to wait, if one more request is too many.

        ``whose`` begins the message: "You have".
        """
        if self.most_in_flight is not None and self.in_flight >= self.most_in_flight:
            message = f"{whose} {self.in_flight} requests running, which is the limit; wait for one to end"
            raise RateLimitError(message, retry_after=1)
        if self.requests is not None:
            _need(self.requests, 1.0, now, whose=whose, what="requests")
        if self.tokens is not None:
            _need(self.tokens, 0.0, now, whose=whose, what="tokens")

    def replaceable(self, now: float) -> bool:
        """Return whether it equals a new allowance: nothing in flight, every bucket full at ``now``."""
        return (
            not self.in_flight
            and (self.requests is None or self.requests.full(now))
            and (self.tokens is None or self.tokens.full(now))
        )

    def begin(self) -> None:
        """Count a request that begins."""
        if self.requests is not None:
            self.requests.level -= 1
        self.in_flight += 1

    def give_back(self, now: float) -> None:
        """Return the request to the minute's allowance, because nothing was generated for it."""
        if self.requests is not None:
            self.requests.refill(now)
            self.requests.level = min(self.requests.size, self.requests.level + 1)

    def charge(self, tokens: int, now: float) -> None:
        """Charge ``tokens``; negative if an estimate was too high."""
        if self.tokens is not None:
            self.tokens.refill(now)
            self.tokens.level -= tokens


class Ledger:
    """All allowances: of users, of end users, and of the keys that have limits of their own.

    Args:
        default: Limits of users that the site does not name.
        users: Limits by user, or by ``<user>/<end user>``.
        max_end_users: Allowances of end users that are kept.
    """

    def __init__(self, default: Limits, users: Mapping[str, Limits], max_end_users: int = MAX_END_USERS) -> None:
        self._default = default
        self._max_end_users = max_end_users
        self._named = users
        self._limits = users
        """Limits by user: those of the site's ``users``, then those of plans."""
        self._users: dict[str, Allowance] = {}
        self.kept_end_users: OrderedDict[str, Allowance] = OrderedDict()
        """Allowances of end users; the ledger inspects the first ones for each new end user."""
        self._keys: dict[str, tuple[Figures, Allowance]] = {}

    def set_plans(self, plans: Mapping[str, Limits], now: float) -> None:
        """Use the limits of ``plans``, by user, for all users that the site does not name.

        A user whose limits change keeps its count of requests in flight and gets new buckets at ``now``.
        """
        before, self._limits = self._limits, {**plans, **self._named}
        for user, allowance in self._users.items():
            limits = self.limits(user)
            if limits != before.get(user, self._default):
                allowance.requests = _bucket(limits.requests_per_minute, now)
                allowance.tokens = _bucket(limits.tokens_per_minute, now)
                allowance.most_in_flight = limits.requests_in_flight

    def limits(self, user: str) -> Limits:
        """Return the limits of ``user``, without those of its keys."""
        return self._limits.get(user, self._default)

    def weight(self, key: Key) -> float:
        """Return the share of a busy engine for ``key``, relative to weight 1.

        The key's own weight takes precedence, then its end user's if the site names that, then its user's.
        """
        if key.weight is not None:
            return key.weight
        limits = self._limits.get(key.user)
        if limits is None:
            limits = self._limits.get(key.account, self._default) if key.end_users else self._default
        return limits.weight

    def admit(self, key: Key, now: float) -> tuple[Allowance, ...]:
        """Count a request of ``key`` that begins; return the allowances for :meth:`finish`.

        Raises :class:`RateLimitError` if any allowance is used up; then the request counts for none of them.
        """
        if not key.end_users and not key.limited:
            user = self._users.get(key.user) or self._user(key.user, now)
            user.check(now, "You have")
            user.begin()
            return (user,)
        account = key.account
        behind = key.user != account
        user = self._end_user(key.user, now) if behind else self._user(account, now)
        user.check(now, "You have")
        counted = [user]
        if behind and account in self._limits:
            total = self._user(account, now)
            total.check(now, f"{account} and its end users have")
            counted.append(total)
        if key.limited:
            own = self._own(key, now)
            own.check(now, "This key has")
            counted.append(own)
        for allowance in counted:
            allowance.begin()
        return tuple(counted)

    @staticmethod
    def charge(allowances: tuple[Allowance, ...], tokens: int, now: float) -> None:
        """Charge tokens of a running request, so that many requests at once cannot exceed a minute's allowance."""
        for allowance in allowances:
            allowance.charge(tokens, now)

    @staticmethod
    def finish(allowances: tuple[Allowance, ...], tokens: int, now: float, *, refused: bool = False) -> None:
        """Count a request that ended.

        Args:
            allowances: The result of :meth:`admit`.
            tokens: Tokens that were not charged yet.
            now: Time in seconds.
            refused: Whether the request costs nothing.
        """
        for allowance in allowances:
            allowance.in_flight -= 1
            allowance.charge(tokens, now)
            if refused:
                allowance.give_back(now)

    def _user(self, user: str, now: float) -> Allowance:
        known = self._users.get(user)
        if known is None:
            known = self._users[user] = self._open(user, now)
        return known

    def _open(self, user: str, now: float) -> Allowance:
        limits = self._limits.get(user, self._default)
        return Allowance(
            _bucket(limits.requests_per_minute, now),
            _bucket(limits.tokens_per_minute, now),
            limits.requests_in_flight,
        )

    def _end_user(self, user: str, now: float) -> Allowance:
        known = self.kept_end_users.get(user)
        if known is None:
            if len(self.kept_end_users) >= self._max_end_users:
                self._forget(now)
            known = self.kept_end_users[user] = self._open(user, now)
        return known

    def _forget(self, now: float) -> None:
        """Inspect the first few allowances: discard those that equal a new one, move the others to the end."""
        for _ in range(min(INSPECTED, len(self.kept_end_users))):
            user, allowance = self.kept_end_users.popitem(last=False)
            if not allowance.replaceable(now):
                self.kept_end_users[user] = allowance

    def _own(self, key: Key, now: float) -> Allowance:
        figures = (key.requests_per_minute, key.tokens_per_minute, key.requests_in_flight)
        known = self._keys.get(key.id)
        # A key with another name, or used for another end user, keeps its usage.
        if known is not None and known[0] == figures:
            return known[1]
        requests = _bucket(key.requests_per_minute, now)
        tokens = _bucket(key.tokens_per_minute, now)
        if known is None:
            own = Allowance(requests, tokens, key.requests_in_flight)
        else:
            # The key's limits were changed: new buckets, and the same count of requests in flight.
            own = known[1]
            own.requests, own.tokens, own.most_in_flight = requests, tokens, key.requests_in_flight
        self._keys[key.id] = (figures, own)
        return own


def _need(bucket: Bucket, amount: float, now: float, *, whose: str, what: str) -> None:
    bucket.refill(now)
    if bucket.level < amount:
        wait = bucket.wait(amount)
        message = f"{whose} used up {bucket.size:.0f} {what} per minute; try again in {wait:.0f} s"
        raise RateLimitError(message, retry_after=wait)


def _bucket(per_minute: int | None, now: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, per_minute, now)
