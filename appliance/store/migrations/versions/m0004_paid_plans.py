"""Payments with their price, so that each can be found and refunded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add columns, empty for payments from before."""
    op.add_column("payments", sa.Column("days", sa.Integer))
    op.add_column("payments", sa.Column("amount", sa.Integer))
    op.add_column("payments", sa.Column("currency", sa.String(3)))
    op.add_column("payments", sa.Column("refunded_at", sa.Double))
