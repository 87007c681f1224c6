"""The tables of the bot, in SQLite. ``migrations/`` creates and changes them.

Times are seconds since the epoch. ``thread_id`` is the topic of a chat, 0 without one. ``payload``, ``request`` and
``entities`` are JSON.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

REVISIONS = ("0001", "0002", "0003")
"""All migrations of this version, oldest first."""

METADATA = MetaData()

FACTS = Table(
    "facts", METADATA, Column("name", String(40), primary_key=True), Column("value", Text, nullable=False)
)
"""Single values: the name of the bot."""

LINKS = Table(
    "links",
    METADATA,
    Column("person", BigInteger, primary_key=True, autoincrement=False),
    Column("user", String(127), nullable=False),
    Column("key_id", String(12), nullable=False),
    Column("linked_at", Double, nullable=False),
)
"""The user and the key of each linked person, by the person's id at Telegram."""

LINK_CODES = Table(
    "link_codes",
    METADATA,
    Column("digest", LargeBinary, primary_key=True),
    Column("user", String(127), nullable=False),
    Column("key_id", String(12), nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("used_at", Double),
)

STRANGERS = Table(
    "strangers",
    METADATA,
    Column("person", BigInteger, primary_key=True, autoincrement=False),
    Column("replied_at", Double, nullable=False),
)
"""Persons without a link that got their one reply."""

UPDATES = Table(
    "updates",
    METADATA,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("received_at", Double, nullable=False),
    Column("payload", Text),
)
"""Received updates; ``payload`` is empty once the effect of the update has begun."""

CHATS = Table(
    "chats",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("chat_id", BigInteger, nullable=False),
    Column("thread_id", BigInteger, nullable=False),
    Column("person", BigInteger, nullable=False),
    Column("conversation_id", String(64)),
    Column("vector_store_id", String(64)),
    Column("model", String(127)),
    Column("topic_name", String(128)),
    UniqueConstraint("chat_id", "thread_id", "person"),
)
"""The conversation of one person in one topic. ``topic_name`` is the name that the bot gave to the topic."""

TURNS = Table(
    "turns",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("chat", Integer, nullable=False, index=True),
    Column("message_id", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False, index=True),
    Column("state", String(10), nullable=False, index=True),
    Column("response_id", String(64)),
    Column("placeholder_id", BigInteger),
    Column("tokens", Integer, nullable=False, server_default="0"),
    Column("request", Text, nullable=False),
)

PARTS = Table(
    "parts",
    METADATA,
    Column("turn", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(10), nullable=False),
    Column("text", Text, nullable=False),
    Column("entities", Text, nullable=False),
    Column("message_id", BigInteger),
    PrimaryKeyConstraint("turn", "number"),
)

ORDERS = Table(
    "orders",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("token", String(32), nullable=False),
    Column("person", BigInteger, nullable=False, index=True),
    Column("user", String(127), nullable=False),
    Column("plan", String(63), nullable=False),
    Column("stars", Integer, nullable=False),
    Column("days", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
)
"""Invoices for plans, as the person got them: a later price does not change one."""

STAR_PAYMENTS = Table(
    "star_payments",
    METADATA,
    Column("charge", String(200), primary_key=True),
    Column("person", BigInteger, nullable=False),
    Column("chat_id", BigInteger, nullable=False),
    Column("thread_id", BigInteger, nullable=False),
    Column("language", String(8), nullable=False),
    Column("user", String(127)),
    Column("plan", String(63)),
    Column("days", Integer),
    Column("stars", Integer, nullable=False),
    Column("paid_at", Double, nullable=False),
    Column("state", String(10), nullable=False, index=True),
)
"""Payments by Telegram's id of the charge. ``user``, ``plan`` and ``days`` are empty without an order."""
