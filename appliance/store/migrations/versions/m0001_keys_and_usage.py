"""Keys with their limits, the number of changes, usage records."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables. They are written out here, because ``schema.py`` changes later."""
    op.create_table(
        "keys",
        sa.Column("id", sa.String(12), primary_key=True),
        sa.Column("user", sa.String(63), nullable=False),
        sa.Column("name", sa.String(100), nullable=False, server_default=""),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("models", sa.String),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("tokens_per_minute", sa.Integer),
        sa.Column("requests_in_flight", sa.Integer),
        sa.Column("weight", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("revoked_at", sa.Double),
    )
    changes = op.create_table(
        "changes",
        sa.Column("what", sa.String(20), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(changes, [{"what": "keys", "number": 0}])
    op.create_table(
        "usage",
        sa.Column(
            "number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("started_at", sa.Double, nullable=False),
        *(
            sa.Column(name, sa.String(length), nullable=False)
            for name, length in (
                ("request_id", 40),
                ("user", 63),
                ("key_id", 12),
                ("endpoint", 60),
                ("name", None),
                ("model", None),
                ("role", None),
                ("engine", None),
            )
        ),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String(40), nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("cached_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("queue_ms", sa.Double, nullable=False),
        sa.Column("ttft_ms", sa.Double),
        sa.Column("duration_ms", sa.Double, nullable=False),
    )
    op.create_index("usage_started_at", "usage", ["started_at"])
