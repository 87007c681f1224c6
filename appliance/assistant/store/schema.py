"""The tables, for both SQLite and PostgreSQL. ``migrations/`` creates and changes them.

Times are seconds since the epoch. ``tenant`` is the user of the gateway's key, ``ada`` or ``ada/end-user``; each
statement has it in its condition. Columns named ``body``, ``metadata``, ``attributes``, ``chunking``, ``terms`` and
``fingerprint`` are JSON. Numbers of tables are of SQLite's rowid or of a sequence.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

REVISION = "0001"
"""The newest migration, which gives the tables below; a test compares both."""

REVISIONS = ("0001",)
"""All migrations of this version, oldest first."""

METADATA = MetaData()

_NUMBER = BigInteger().with_variant(Integer, "sqlite")

CONVERSATIONS = Table(
    "conversations",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(127), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("title", String(512), nullable=False, server_default=""),
    Column("metadata", Text, nullable=False, server_default="{}"),
    Column("key_id", String(12), nullable=False),
    Column("closed_at", Double),
    Column("indexed_at", Double),
)
"""``title`` repeats that of ``metadata``. ``indexed_at`` is the ``updated_at`` up to which the memory has rounds.
``key_id`` is the key of the last turn, for work in the background."""
Index("conversations_by_update", CONVERSATIONS.c.tenant, CONVERSATIONS.c.updated_at, CONVERSATIONS.c.id)

ITEMS = Table(
    "items",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(127), nullable=False),
    Column("type", String(40), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("body", Text, nullable=False),
)
"""Each item once; conversations and responses refer to it."""
Index("items_by_tenant", ITEMS.c.tenant, ITEMS.c.id)

CONVERSATION_ITEMS = Table(
    "conversation_items",
    METADATA,
    Column("conversation_id", String(64), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("item_id", String(64), nullable=False),
    UniqueConstraint("conversation_id", "item_id", name="conversation_items_once"),
    ForeignKeyConstraint(["conversation_id"], ["conversations.id"], name="conversation_items_conversation"),
    ForeignKeyConstraint(["item_id"], ["items.id"], name="conversation_items_item"),
)
Index("conversation_items_by_item", CONVERSATION_ITEMS.c.item_id)

CONVERSATION_TERMS = Table(
    "conversation_terms",
    METADATA,
    Column("tenant", String(127), primary_key=True),
    Column("term", String(64), primary_key=True),
    Column("conversation_id", String(64), primary_key=True),
)
"""Terms of titles and messages, for the search of conversations."""
Index("conversation_terms_by_conversation", CONVERSATION_TERMS.c.conversation_id)

RESPONSES = Table(
    "responses",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(127), nullable=False),
    Column("key_id", String(12), nullable=False),
    Column("conversation_id", String(64)),
    Column("previous_id", String(64)),
    Column("status", String(20), nullable=False),
    Column("background", Boolean, nullable=False, server_default=false()),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("body", Text, nullable=False),
)
"""``body`` is the response without its output."""
Index("responses_by_status", RESPONSES.c.status)
Index("responses_by_tenant", RESPONSES.c.tenant, RESPONSES.c.created_at)
Index("responses_by_conversation", RESPONSES.c.conversation_id)
Index("responses_by_previous", RESPONSES.c.previous_id)

RESPONSE_ITEMS = Table(
    "response_items",
    METADATA,
    Column("response_id", String(64), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("item_id", String(64), nullable=False),
    Column("output", Boolean, nullable=False),
    ForeignKeyConstraint(["response_id"], ["responses.id"], name="response_items_response"),
    ForeignKeyConstraint(["item_id"], ["items.id"], name="response_items_item"),
)
"""The items that a response added: its own input, then its output. Those before it are those of ``previous_id``."""
Index("response_items_by_item", RESPONSE_ITEMS.c.item_id)

FILES = Table(
    "files",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(127), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(40), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
)
"""The content is a file of the data folder with the name ``id``; ``digest`` is its SHA-256."""
Index("files_by_tenant", FILES.c.tenant, FILES.c.created_at, FILES.c.id)

VECTOR_STORES = Table(
    "vector_stores",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(127), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("name", String(255), nullable=False, server_default=""),
    Column("metadata", Text, nullable=False, server_default="{}"),
    Column("fingerprint", Text),
    Column("created_at", Double, nullable=False),
    Column("last_active_at", Double, nullable=False),
    Column("expires_days", Integer),
    Column("changes", BigInteger, nullable=False, server_default="0"),
    Column("next_fingerprint", Text),
)
"""``kind`` is ``files``, or ``chats`` for the one store of a tenant's past conversations. ``changes`` counts the
transactions that changed its passages, so that an index in memory notices that it is old. ``next_fingerprint``
belongs to the ``next_vector`` of its passages while ``appliance memory reindex`` runs."""
Index("vector_stores_by_tenant", VECTOR_STORES.c.tenant, VECTOR_STORES.c.kind, VECTOR_STORES.c.created_at)

VECTOR_STORE_FILES = Table(
    "vector_store_files",
    METADATA,
    Column("store_id", String(64), primary_key=True),
    Column("file_id", String(64), primary_key=True),
    Column("tenant", String(127), nullable=False),
    Column("key_id", String(12), nullable=False),
    Column("status", String(20), nullable=False),
    Column("error_code", String(40)),
    Column("error_message", Text),
    Column("attributes", Text, nullable=False, server_default="{}"),
    Column("chunking", Text, nullable=False),
    Column("usage_bytes", BigInteger, nullable=False, server_default="0"),
    Column("created_at", Double, nullable=False),
    Column("batch_id", String(64)),
    ForeignKeyConstraint(["store_id"], ["vector_stores.id"], name="vector_store_files_store"),
    ForeignKeyConstraint(["file_id"], ["files.id"], name="vector_store_files_file"),
)
Index("vector_store_files_by_status", VECTOR_STORE_FILES.c.status, VECTOR_STORE_FILES.c.created_at)
Index("vector_store_files_by_file", VECTOR_STORE_FILES.c.file_id)
Index("vector_store_files_by_batch", VECTOR_STORE_FILES.c.batch_id)

FILE_BATCHES = Table(
    "file_batches",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("store_id", String(64), nullable=False),
    Column("tenant", String(127), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("cancelled", Boolean, nullable=False, server_default=false()),
    ForeignKeyConstraint(["store_id"], ["vector_stores.id"], name="file_batches_store"),
)
Index("file_batches_by_store", FILE_BATCHES.c.store_id)

PASSAGES = Table(
    "passages",
    METADATA,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("store_id", String(64), nullable=False),
    Column("tenant", String(127), nullable=False),
    Column("group_id", String(64), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("subject", String(255)),
    Column("source", String(512), nullable=False),
    Column("section", Text, nullable=False, server_default=""),
    Column("text", Text, nullable=False),
    Column("indexed_text", Text, nullable=False, server_default=""),
    Column("terms", Text, nullable=False),
    Column("vector", LargeBinary, nullable=False),
    Column("date", Double),
    Column("valid_from", Double),
    Column("valid_until", Double),
    Column("next_vector", LargeBinary),
    ForeignKeyConstraint(["store_id"], ["vector_stores.id"], name="passages_store"),
    # A number of a removed passage is never used again: an index in memory compares numbers only.
    sqlite_autoincrement=True,
)
"""``group_id`` is the file or the conversation, ``kind`` is ``chunk``, ``round`` or ``fact``. ``subject`` names the
property of a fact that a newer one supersedes. ``vector`` has float32 numbers, little-endian, of length 1; it
is empty without an embedder. ``next_vector`` is that of another embedder while the store is indexed again."""
Index("passages_by_store", PASSAGES.c.store_id, PASSAGES.c.number)
Index("passages_by_group", PASSAGES.c.group_id, PASSAGES.c.store_id)
Index("passages_by_subject", PASSAGES.c.store_id, PASSAGES.c.subject)
