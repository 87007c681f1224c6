"""Orders and payments of plans."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("person", sa.BigInteger, nullable=False),
        sa.Column("user", sa.String(127), nullable=False),
        sa.Column("plan", sa.String(63), nullable=False),
        sa.Column("stars", sa.Integer, nullable=False),
        sa.Column("days", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_index("ix_orders_person", "orders", ["person"])
    op.create_table(
        "star_payments",
        sa.Column("charge", sa.String(200), primary_key=True),
        sa.Column("person", sa.BigInteger, nullable=False),
        sa.Column("chat_id", sa.BigInteger, nullable=False),
        sa.Column("thread_id", sa.BigInteger, nullable=False),
        sa.Column("language", sa.String(8), nullable=False),
        sa.Column("user", sa.String(127)),
        sa.Column("plan", sa.String(63)),
        sa.Column("days", sa.Integer),
        sa.Column("stars", sa.Integer, nullable=False),
        sa.Column("paid_at", sa.Double, nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
    )
    op.create_index("ix_star_payments_state", "star_payments", ["state"])
