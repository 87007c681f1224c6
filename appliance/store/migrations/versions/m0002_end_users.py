"""Keys whose requests name end users, and room for ``<user>/<end user>`` in usage records."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add ``end_users``; widen ``user`` if the database enforces its length (PostgreSQL copies no rows)."""
    op.add_column("keys", sa.Column("end_users", sa.Boolean, nullable=False, server_default=sa.false()))
    if op.get_bind().dialect.name != "sqlite":
        op.alter_column("usage", "user", existing_type=sa.String(63), type_=sa.String(127), existing_nullable=False)
