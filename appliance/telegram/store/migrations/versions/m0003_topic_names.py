"""The names of topics, as the bot has set them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column."""
    op.add_column("chats", sa.Column("topic_name", sa.String(128)))
