"""Links, updates, chats, turns and their messages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables. They are written out here, because ``schema.py`` changes later."""
    op.create_table(
        "facts", sa.Column("name", sa.String(40), primary_key=True), sa.Column("value", sa.Text, nullable=False)
    )
    op.create_table(
        "links",
        sa.Column("person", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("user", sa.String(127), nullable=False),
        sa.Column("key_id", sa.String(12), nullable=False),
        sa.Column("linked_at", sa.Double, nullable=False),
    )
    op.create_table(
        "link_codes",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("user", sa.String(127), nullable=False),
        sa.Column("key_id", sa.String(12), nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("used_at", sa.Double),
    )
    op.create_table(
        "strangers",
        sa.Column("person", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("replied_at", sa.Double, nullable=False),
    )
    op.create_table(
        "updates",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("received_at", sa.Double, nullable=False),
        sa.Column("payload", sa.Text),
    )
    op.create_table(
        "chats",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("chat_id", sa.BigInteger, nullable=False),
        sa.Column("thread_id", sa.BigInteger, nullable=False),
        sa.Column("person", sa.BigInteger, nullable=False),
        sa.Column("conversation_id", sa.String(64)),
        sa.Column("vector_store_id", sa.String(64)),
        sa.Column("model", sa.String(127)),
        sa.UniqueConstraint("chat_id", "thread_id", "person"),
    )
    op.create_table(
        "turns",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("chat", sa.Integer, nullable=False),
        sa.Column("message_id", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("response_id", sa.String(64)),
        sa.Column("placeholder_id", sa.BigInteger),
        sa.Column("tokens", sa.Integer, nullable=False, server_default="0"),
        sa.Column("request", sa.Text, nullable=False),
    )
    for column in ("chat", "created_at", "state"):
        op.create_index(f"ix_turns_{column}", "turns", [column])
    op.create_table(
        "parts",
        sa.Column("turn", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("entities", sa.Text, nullable=False),
        sa.Column("message_id", sa.BigInteger),
        sa.PrimaryKeyConstraint("turn", "number"),
    )
