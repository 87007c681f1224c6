"""The tables, for both SQLite and PostgreSQL. ``migrations/`` creates and changes them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    false,
)

METADATA = MetaData()

KEYS = Table(
    "keys",
    METADATA,
    Column("id", String(12), primary_key=True),
    Column("user", String(63), nullable=False),
    Column("name", String(100), nullable=False, server_default=""),
    Column("digest", LargeBinary, nullable=False),
    Column("models", String),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("requests_in_flight", Integer),
    Column("weight", Double),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("end_users", Boolean, nullable=False, server_default=false()),
)
"""``models`` is a JSON list of names, or NULL for all. Times are seconds since the epoch."""

CHANGES = Table(
    "changes",
    METADATA,
    Column("what", String(20), primary_key=True),
    Column("number", BigInteger, nullable=False),
)
"""Number of changes of a table, counted in the transaction of the change: cheap to poll."""

USAGE = Table(
    "usage",
    METADATA,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("started_at", Double, nullable=False),
    Column("request_id", String(40), nullable=False),
    Column("user", String(127).with_variant(String(63), "sqlite"), nullable=False),
    Column("key_id", String(12), nullable=False),
    Column("endpoint", String(60), nullable=False),
    Column("name", String, nullable=False),
    Column("model", String, nullable=False),
    Column("role", String, nullable=False),
    Column("engine", String, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("status", Integer, nullable=False),
    Column("outcome", String(40), nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("queue_ms", Double, nullable=False),
    Column("ttft_ms", Double),
    Column("duration_ms", Double, nullable=False),
)
"""``user`` is ``<user>`` or ``<user>/<end user>``, 63 characters each. SQLite does not enforce lengths, and to
change one it copies the whole table, so there the column keeps its first type."""
Index("usage_started_at", USAGE.c.started_at)

USERS = Table(
    "users",
    METADATA,
    Column("name", String(63), primary_key=True),
    Column("plan", String(63)),
    Column("plan_until", Double),
    Column("created_at", Double, nullable=False),
    Column("disabled_at", Double),
    Column("note", String(200), nullable=False, server_default=""),
    Column("language", String(8), nullable=False, server_default=""),
)
"""Users with a plan, a note or a language. A user with a key and no row here has the site's default plan."""

INVITES = Table(
    "invites",
    METADATA,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("plan", String(63)),
    Column("days", Integer),
    Column("made_by", String(63), nullable=False),
    Column("made_at", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Column("used_by", String(63)),
    Column("used_at", Double),
)
"""Codes that create a user, as SHA-256. ``days`` is the length of the plan from the use of the code."""

PAYMENTS = Table(
    "payments",
    METADATA,
    Column("id", String(200), primary_key=True),
    Column("user", String(63), nullable=False),
    Column("plan", String(63), nullable=False),
    Column("until", Double, nullable=False),
    Column("made_at", Double, nullable=False),
    Column("days", Integer),
    Column("amount", Integer),
    Column("currency", String(3)),
    Column("refunded_at", Double),
)
"""Payments that extended a plan, by the id of the payment: each counts once. ``until`` is the end of the plan after
the payment. ``amount`` is in the smallest unit of ``currency``; both are empty if the caller did not name them."""

BUDGET_NOTICES = Table(
    "budget_notices",
    METADATA,
    Column("user", String(63), primary_key=True),
    Column("period", String(10), primary_key=True),
    Column("percent", Integer, primary_key=True),
    Column("made_at", Double, nullable=False),
)
"""Budgets that reached a share: ``period`` is ``YYYY-MM-DD`` or ``YYYY-MM``. Each is recorded once."""

USAGE_DAYS = Table(
    "usage_days",
    METADATA,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("user", String(63), primary_key=True),
    Column("tokens", BigInteger, nullable=False),
)
"""Tokens of users in closed days, by days since the epoch. :mod:`~appliance.store.usage_days` fills it."""
