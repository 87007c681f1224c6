"""Sums of the usage of closed days."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the table; a gateway fills it."""
    op.create_table(
        "usage_days",
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("user", sa.String(63), primary_key=True),
        sa.Column("tokens", sa.BigInteger, nullable=False),
    )
