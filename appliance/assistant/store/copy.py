"""A consistent copy of the assistant's database for backups, and its way back into an empty database.

The copy is always one SQLite file, also of PostgreSQL: a restore needs no server of the same version. Uploaded
files are not part of it. A file never changes once it has its name, so a backup saves their folder as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import Engine, select

from appliance.assistant.store.database import FILE, Database
from appliance.assistant.store.schema import METADATA, PASSAGES
from appliance.errors import StoreError
from appliance.store.copies import check_sqlite, copy_rows, copy_sqlite
from appliance.system import files

AT_ONCE = 1000
"""Rows that a copy holds in memory; a passage has its text and its vector."""
UNUSED_NUMBERS = 2**32
"""Numbers of passages that a loaded copy omits. Those given after the copy was made may be points in Qdrant: a new
passage must not find another one's vector under its number."""


def write_copy(database: Database, folder: Path) -> Mapping[str, int]:
    """Replace the copy in ``folder`` by the present state of ``database``; return the rows of each table.

    Raises :class:`StoreError` if either cannot be read or written; the earlier copy then stays.
    """
    new = folder / "new"
    _remove(new)
    files.make_folder(new)
    if database.engine.dialect.name == "sqlite":
        copy_sqlite(Path(str(database.engine.url.database)), new / FILE)
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
        copy_sqlite(source, work / FILE)
        _check(work / FILE)
        copy = Database(work)
        try:
            return _copy_rows(copy.engine, database.engine, gap=UNUSED_NUMBERS)
        finally:
            copy.close()
    finally:
        _remove(work)


def _copy_rows(source: Engine, target: Engine, *, gap: int = 0) -> dict[str, int]:
    """Copy all rows as of one moment into a database without rows."""
    statements = {table: select(table) for table in METADATA.sorted_tables}
    return copy_rows(source, target, statements, process="assistant", numbered=PASSAGES, at_once=AT_ONCE, gap=gap)


def _check(file: Path) -> dict[str, int]:
    """Verify a copy, leave one file without a journal, and return the rows of each table."""
    return check_sqlite(file, fix="restore an earlier snapshot", close=True, count=METADATA.tables)


def _remove(folder: Path) -> None:
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise StoreError.unwritable(folder, error) from None
