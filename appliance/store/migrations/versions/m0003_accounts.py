"""Users with plans, invites, payments, and budgets that reached a share."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables of accounts, and count the changes of users."""
    op.create_table(
        "users",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("plan", sa.String(63)),
        sa.Column("plan_until", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("disabled_at", sa.Double),
        sa.Column("note", sa.String(200), nullable=False, server_default=""),
        sa.Column("language", sa.String(8), nullable=False, server_default=""),
    )
    op.create_table(
        "invites",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("plan", sa.String(63)),
        sa.Column("days", sa.Integer),
        sa.Column("made_by", sa.String(63), nullable=False),
        sa.Column("made_at", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        sa.Column("used_by", sa.String(63)),
        sa.Column("used_at", sa.Double),
    )
    op.create_table(
        "payments",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("user", sa.String(63), nullable=False),
        sa.Column("plan", sa.String(63), nullable=False),
        sa.Column("until", sa.Double, nullable=False),
        sa.Column("made_at", sa.Double, nullable=False),
    )
    op.create_table(
        "budget_notices",
        sa.Column("user", sa.String(63), primary_key=True),
        sa.Column("period", sa.String(10), primary_key=True),
        sa.Column("percent", sa.Integer, primary_key=True),
        sa.Column("made_at", sa.Double, nullable=False),
    )
    changes = sa.table("changes", sa.column("what", sa.String), sa.column("number", sa.BigInteger))
    op.execute(changes.insert().values(what="users", number=0))
