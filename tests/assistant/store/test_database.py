"""The assistant's tables and their migrations, on SQLite and PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import insert, select, text

from appliance.assistant.store import schema
from appliance.assistant.store.database import ASSISTANT, FILE, Database
from appliance.errors import StoreError


def test_the_migrations_create_the_tables_of_the_schema(tmp_path: Path) -> None:
    script = ScriptDirectory(str(Path(schema.__file__).parent / "migrations"))
    assert script.get_current_head() == schema.REVISION == schema.REVISIONS[-1]
    assert {revision.revision for revision in script.walk_revisions()} == set(schema.REVISIONS)
    database = Database(tmp_path)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": ASSISTANT.version_table})
        assert compare_metadata(context, schema.METADATA) == []
    database.close()


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    database = Database(tmp_path)
    with database.writing() as connection:
        connection.execute(text(f"UPDATE {ASSISTANT.version_table} SET version_num = '9999'"))
    database.close()
    with pytest.raises(StoreError, match="was made by a newer version"):
        Database(tmp_path)


def test_an_error_undoes_the_whole_block(tmp_path: Path) -> None:
    database = Database(tmp_path)
    row = {"id": "msg_1", "tenant": "ada", "type": "message", "created_at": 1.0, "body": "{}"}

    def twice() -> None:
        with database.writing() as connection:
            connection.execute(insert(schema.ITEMS).values(row))
            connection.execute(insert(schema.ITEMS).values(row))

    with pytest.raises(StoreError):
        twice()
    with database.reading() as connection:
        assert connection.execute(select(schema.ITEMS.c.id)).all() == []
    database.close()


def test_a_password_of_the_url_is_in_no_message(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as raised:
        Database(tmp_path, "postgresql://ada:secret@127.0.0.1:1/assistant")
    assert "secret" not in str(raised.value)


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    Database(tmp_path).close()
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_database_that_is_open_to_read_refuses_changes(tmp_path: Path, url: str | None) -> None:
    with pytest.raises(StoreError):
        Database(tmp_path, url, read_only=True)
    Database(tmp_path, url).close()
    database = Database(tmp_path, url, read_only=True)
    with pytest.raises(StoreError, match=r"read-?only"), database.writing() as connection:
        connection.execute(insert(schema.ITEMS).values(id="1", tenant="a", type="x", created_at=1.0, body="{}"))
    with database.reading() as connection:
        assert connection.execute(select(schema.ITEMS.c.id)).all() == []
    database.close()


def test_an_older_schema_is_not_read(tmp_path: Path) -> None:
    database = Database(tmp_path)
    with database.writing() as connection:
        connection.execute(text(f"UPDATE {ASSISTANT.version_table} SET version_num = '0000'"))
    database.close()
    with pytest.raises(StoreError, match="has the schema 0000"):
        Database(tmp_path, read_only=True)
