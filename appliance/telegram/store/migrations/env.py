"""Alembic's environment: runs migrations on the connection of :func:`appliance.store.database.upgrade`."""

from __future__ import annotations

from alembic import context

from appliance.telegram.store.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=context.config.attributes["version_table"],
    # SQLite cannot alter a column in place: Alembic copies the table.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
