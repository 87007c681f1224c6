"""The model that each user used last, for loading it when the user appears again.

Pure: the caller supplies the time.

A user appears with a list of models or a session of the chat page after ``absent_s`` without a sign. A program
that lists models every few seconds appears once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_USERS = 10_000
"""Users whose models are kept; the one with the oldest sign is dropped."""


@dataclass(slots=True)
class _LastUse:
    model: str
    seen_at: float


@dataclass(slots=True)
class LastModels:
    """The last model and the last sign of each user, in the order of the signs."""

    absent_s: float
    """Seconds without a sign after which the next one counts as an appearance."""
    _users: dict[str, _LastUse] = field(default_factory=dict)

    def used(self, user: str, model: str, now: float) -> None:
        """Record that ``user`` used ``model`` at ``now``, in seconds."""
        self._users.pop(user, None)
        self._users[user] = _LastUse(model, now)
        if len(self._users) > MOST_USERS:
            del self._users[next(iter(self._users))]

    def appeared(self, user: str, now: float) -> str | None:
        """Record a sign of ``user``; return the model to expect, or ``None`` if the user was present or is new."""
        last = self._users.pop(user, None)
        if last is None:
            return None
        absent = now - last.seen_at >= self.absent_s
        self._users[user] = _LastUse(last.model, now)
        return last.model if absent else None
