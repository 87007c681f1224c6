"""Records of the database: API keys and the usage of requests."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

KEY = re.compile(rb"sk-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
"""An API key: ``sk-<id>-<secret>``."""

USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""The name of a user."""

State = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class Key:
    """A stored key; times are seconds since the epoch. Its limits apply in addition to its user's."""

    id: str
    user: str
    digest: bytes
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    name: str = ""
    models: frozenset[str] | None = None
    """Models and roles that it may use; ``None`` for all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_in_flight: int | None = None
    weight: float | None = None
    """Priority weight in the queue; ``None`` for its user's."""
    end_users: bool = False
    """Whether each end user that a request names counts as a user."""

    def state(self, now: float) -> State:
        """Return the state at ``now``, in seconds since the epoch."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "active"

    @property
    def limited(self) -> bool:
        """Whether it has limits of its own."""
        return (
            self.requests_per_minute is not None
            or self.tokens_per_minute is not None
            or self.requests_in_flight is not None
        )

    @property
    def account(self) -> str:
        """The user of the key, without an end user. A user's name has no slash."""
        return self.user.partition("/")[0]

    @property
    def scope(self) -> str:
        """The caller within which an ``Idempotency-Key`` counts: this key, and the end user behind it."""
        return f"{self.id}/{self.user}"

    def of_end_user(self, name: str) -> Key:
        """Return this key for the end user ``name``: its ``user`` is ``<account>/<name>``."""
        return replace(self, user=f"{self.account}/{name}")

    def allows(self, name: str) -> bool:
        """Return whether it may use the model or role ``name``."""
        return self.models is None or name in self.models


@dataclass(frozen=True, slots=True)
class Account:
    """A stored user; times are seconds since the epoch."""

    name: str
    plan: str | None = None
    """Name of its plan; ``None`` for the site's default."""
    plan_until: float | None = None
    """End of its plan; ``None`` for a plan without an end."""
    created_at: float = 0.0
    disabled_at: float | None = None
    """Since when none of its keys is valid."""
    note: str = ""
    language: str = ""

    def plan_at(self, now: float) -> str | None:
        """Return the plan at ``now``, in seconds since the epoch; ``None`` for the site's default."""
        return self.plan if self.plan_until is None or now < self.plan_until else None


@dataclass(frozen=True, slots=True)
class PlanPayment:
    """A payment for ``days`` days of a plan; ``amount`` is in the smallest unit of ``currency``."""

    id: str
    user: str
    plan: str
    days: int
    amount: int
    currency: str


@dataclass(slots=True)
class UsageRow:
    """Usage of one request. Times are in milliseconds, tokens as the engine reported them unless ``estimated``."""

    started_at: float
    request_id: str
    user: str
    key_id: str
    endpoint: str
    name: str = ""
    model: str = ""
    role: str = ""
    engine: str = ""
    stream: bool = False
    status: int = 0
    outcome: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    queue_ms: float = 0.0
    ttft_ms: float | None = None
    duration_ms: float = 0.0
