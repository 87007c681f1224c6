"""Conversations, items, responses, files, vector stores, passages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables. They are written out here, because ``schema.py`` changes later."""
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(127), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("title", sa.String(512), nullable=False, server_default=""),
        sa.Column("metadata", sa.Text, nullable=False, server_default="{}"),
        sa.Column("key_id", sa.String(12), nullable=False),
        sa.Column("closed_at", sa.Double),
        sa.Column("indexed_at", sa.Double),
    )
    op.create_index("conversations_by_update", "conversations", ["tenant", "updated_at", "id"])
    op.create_table(
        "items",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(127), nullable=False),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("items_by_tenant", "items", ["tenant", "id"])
    op.create_table(
        "conversation_items",
        sa.Column("conversation_id", sa.String(64), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("item_id", sa.String(64), nullable=False),
        sa.UniqueConstraint("conversation_id", "item_id", name="conversation_items_once"),
        sa.ForeignKeyConstraint(["conversation_id"], ["conversations.id"], name="conversation_items_conversation"),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name="conversation_items_item"),
    )
    op.create_index("conversation_items_by_item", "conversation_items", ["item_id"])
    op.create_table(
        "conversation_terms",
        sa.Column("tenant", sa.String(127), primary_key=True),
        sa.Column("term", sa.String(64), primary_key=True),
        sa.Column("conversation_id", sa.String(64), primary_key=True),
    )
    op.create_index("conversation_terms_by_conversation", "conversation_terms", ["conversation_id"])
    op.create_table(
        "responses",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(127), nullable=False),
        sa.Column("key_id", sa.String(12), nullable=False),
        sa.Column("conversation_id", sa.String(64)),
        sa.Column("previous_id", sa.String(64)),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("background", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("responses_by_status", "responses", ["status"])
    op.create_index("responses_by_tenant", "responses", ["tenant", "created_at"])
    op.create_index("responses_by_conversation", "responses", ["conversation_id"])
    op.create_index("responses_by_previous", "responses", ["previous_id"])
    op.create_table(
        "response_items",
        sa.Column("response_id", sa.String(64), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("item_id", sa.String(64), nullable=False),
        sa.Column("output", sa.Boolean, nullable=False),
        sa.ForeignKeyConstraint(["response_id"], ["responses.id"], name="response_items_response"),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name="response_items_item"),
    )
    op.create_index("response_items_by_item", "response_items", ["item_id"])
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(127), nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("purpose", sa.String(40), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
    )
    op.create_index("files_by_tenant", "files", ["tenant", "created_at", "id"])
    op.create_table(
        "vector_stores",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(127), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("name", sa.String(255), nullable=False, server_default=""),
        sa.Column("metadata", sa.Text, nullable=False, server_default="{}"),
        sa.Column("fingerprint", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("last_active_at", sa.Double, nullable=False),
        sa.Column("expires_days", sa.Integer),
        sa.Column("changes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("next_fingerprint", sa.Text),
    )
    op.create_index("vector_stores_by_tenant", "vector_stores", ["tenant", "kind", "created_at"])
    op.create_table(
        "vector_store_files",
        sa.Column("store_id", sa.String(64), primary_key=True),
        sa.Column("file_id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(127), nullable=False),
        sa.Column("key_id", sa.String(12), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("error_code", sa.String(40)),
        sa.Column("error_message", sa.Text),
        sa.Column("attributes", sa.Text, nullable=False, server_default="{}"),
        sa.Column("chunking", sa.Text, nullable=False),
        sa.Column("usage_bytes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("batch_id", sa.String(64)),
        sa.ForeignKeyConstraint(["store_id"], ["vector_stores.id"], name="vector_store_files_store"),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name="vector_store_files_file"),
    )
    op.create_index("vector_store_files_by_status", "vector_store_files", ["status", "created_at"])
    op.create_index("vector_store_files_by_file", "vector_store_files", ["file_id"])
    op.create_index("vector_store_files_by_batch", "vector_store_files", ["batch_id"])
    op.create_table(
        "file_batches",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("store_id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(127), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("cancelled", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.ForeignKeyConstraint(["store_id"], ["vector_stores.id"], name="file_batches_store"),
    )
    op.create_index("file_batches_by_store", "file_batches", ["store_id"])
    op.create_table(
        "passages",
        sa.Column(
            "number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("store_id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(127), nullable=False),
        sa.Column("group_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("subject", sa.String(255)),
        sa.Column("source", sa.String(512), nullable=False),
        sa.Column("section", sa.Text, nullable=False, server_default=""),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("indexed_text", sa.Text, nullable=False, server_default=""),
        sa.Column("terms", sa.Text, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.Column("date", sa.Double),
        sa.Column("valid_from", sa.Double),
        sa.Column("valid_until", sa.Double),
        sa.Column("next_vector", sa.LargeBinary),
        sa.ForeignKeyConstraint(["store_id"], ["vector_stores.id"], name="passages_store"),
        sqlite_autoincrement=True,
    )
    op.create_index("passages_by_store", "passages", ["store_id", "number"])
    op.create_index("passages_by_group", "passages", ["group_id", "store_id"])
    op.create_index("passages_by_subject", "passages", ["store_id", "subject"])
