"""A consistent copy of the assistant's database for backups, and its way back into an empty database.

The copy is always one SQLite file, also of PostgreSQL: a restore needs no server of the same version. Uploaded
files are not part of it. A file never changes once it has its name, so a backup saves their folder as it is.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from appliance.assistant.store.database import FILE, Database
from appliance.assistant.store.schema import METADATA
from appliance.errors import StoreError
from appliance.store.database import refused
from appliance.system import files

BATCH = 1000
"""Rows that a copy holds in memory; a passage has its text and its vector."""


def write_copy(database: Database, folder: Path) -> Mapping[str, int]:
    """Replace the copy in ``folder`` by the present state of ``database``; return the rows of each table.

    Raises :class:`StoreError` if either cannot be read or written; the earlier copy then stays.
    """
    new = folder / "new"
    _remove(new)
    files.make_folder(new)
    if database.engine.dialect.name == "sqlite":
        _copy_sqlite(Path(str(database.engine.url.database)), new / FILE)
    else:
        copy = Database(new)
        try:
            _copy_rows(database.engine, copy.engine)
        finally:
            copy.close()
    rows = _check(new / FILE)
    files.move(new / FILE, folder / FILE)
    files.sync_folder(folder)
    _remove(new)
    return rows


def load_copy(source: Path, database: Database) -> Mapping[str, int]:
    """Load the copy at ``source`` into the empty ``database``; return the rows of each table.

    Raises :class:`StoreError` if the copy is damaged, or if the database already has rows.
    """
    if not source.is_file():
        raise StoreError(f"{source} does not exist; name the restored {FILE} of a backup")
    work = source.parent / f"{source.name}.work"
    _remove(work)
    files.make_folder(work)
    try:
        # A copy of the copy: opening it may migrate it.
        _copy_sqlite(source, work / FILE)
        _check(work / FILE)
        copy = Database(work)
        try:
            return _copy_rows(copy.engine, database.engine)
        finally:
            copy.close()
    finally:
        _remove(work)


def _copy_sqlite(source: Path, target: Path) -> None:
    try:
        with closing(sqlite3.connect(source, timeout=30)) as used, closing(sqlite3.connect(target)) as copy:
            used.backup(copy)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"{source} cannot be copied to {target} ({error}); check the file, its owner and the free space"
        ) from None


def _check(file: Path) -> dict[str, int]:
    """Verify the pages of a copy, leave one file without a journal, and return the rows of each table."""
    try:
        with closing(sqlite3.connect(file)) as database:
            found = database.execute("PRAGMA integrity_check").fetchone()[0]
            database.execute("PRAGMA journal_mode = DELETE")
            rows = {
                name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608 - our tables
                for name in METADATA.tables
            }
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise StoreError(f"{file} is damaged ({found}); restore an earlier snapshot")
    return rows


def _copy_rows(source: Engine, target: Engine) -> dict[str, int]:
    """Copy all rows as of one moment into a database without rows."""
    rows: dict[str, int] = {}
    engine = target
    try:
        with target.begin() as into:
            for table in METADATA.sorted_tables:
                if into.execute(select(func.count()).select_from(table)).scalar_one():
                    raise StoreError(
                        f"the database already has {table.name}; load a backup into an empty one: "
                        "stop the assistant and move its database away"
                    )
            engine = source
            level = "REPEATABLE READ" if source.dialect.name == "postgresql" else "SERIALIZABLE"
            with source.connect().execution_options(isolation_level=level) as out:
                for table in METADATA.sorted_tables:
                    rows[table.name] = 0
                    found = out.execution_options(yield_per=BATCH).execute(select(table)).mappings()
                    for part in found.partitions(BATCH):
                        into.execute(table.insert(), [dict(row) for row in part])
                        rows[table.name] += len(part)
            engine = target
            if target.dialect.name == "postgresql":
                # Explicit numbers do not move the sequence that the next rows take theirs from.
                into.exec_driver_sql(
                    "SELECT setval(pg_get_serial_sequence('passages', 'number'), "
                    "(SELECT coalesce(max(number), 0) + 1 FROM passages), false)"
                )
    except SQLAlchemyError as error:
        raise refused(error, engine) from error
    return rows


def _remove(folder: Path) -> None:
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise StoreError.unwritable(folder, error) from None
