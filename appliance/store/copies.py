"""Copies of databases: of a SQLite file that is in use, and of rows between two databases as of one moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, column, delete, func, insert, select
from sqlalchemy import table as sql_table
from sqlalchemy.exc import SQLAlchemyError

from appliance.errors import StoreError
from appliance.store.database import refused


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a database that is in use, as of one moment; raises :class:`StoreError`."""
    try:
        with closing(sqlite3.connect(source, timeout=30)) as used, closing(sqlite3.connect(target)) as copy:
            used.backup(copy)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"{source} cannot be copied to {target} ({error}); check the file, its owner and the free space"
        ) from None


def check_sqlite(file: Path, *, fix: str, close: bool = False, count: Iterable[str] = ()) -> dict[str, int]:
    """Verify the pages of a copy, and return the rows of the tables ``count``.

    Args:
        file: The copy.
        fix: The end of the message for a damaged one.
        close: Whether to leave one file without a journal.
        count: Names of our tables.

    Raises :class:`StoreError` if the copy is damaged.
    """
    rows: dict[str, int] = {}
    try:
        with closing(sqlite3.connect(file)) as database:
            found = database.execute("PRAGMA integrity_check").fetchone()[0]
            if close:
                database.execute("PRAGMA journal_mode = DELETE")
            for name in count:
                rows[name] = database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise StoreError(f"{file} is damaged ({found}); {fix}")
    return rows


def copy_rows(
    source: Engine,
    target: Engine,
    statements: Mapping[Table, Any],
    *,
    process: str,
    numbered: Table,
    at_once: int,
    gap: int = 0,
    then: Callable[[Connection], object] = lambda _: None,
) -> dict[str, int]:
    """Copy rows between two databases as of one moment, in one transaction; return the rows of each table by name.

    Args:
        source: The database that is read.
        target: The database that gets the rows.
        statements: The tables in the order of their references, each with the selection of its rows.
        process: The process of the target, for the message if it has rows already.
        numbered: The table whose column ``number`` has a sequence.
        at_once: Rows that are held in memory.
        gap: Numbers that the next row of ``numbered`` omits.
        then: The last change of the target in the transaction.

    Raises :class:`StoreError` if either database fails, or if a table of the target has rows: a copy must not mix
    two histories.
    """
    rows: dict[str, int] = {}
    engine = target
    try:
        with target.begin() as into:
            for table in statements:
                if into.execute(select(func.count()).select_from(table)).scalar_one():
                    raise StoreError(
                        f"the database already has {table.name}; load a backup into an empty one: "
                        f"stop the {process} and move its database away"
                    )
            engine = source
            level = "REPEATABLE READ" if source.dialect.name == "postgresql" else "SERIALIZABLE"
            with source.connect().execution_options(isolation_level=level) as out:
                for table, statement in statements.items():
                    rows[table.name] = 0
                    found = out.execution_options(yield_per=at_once).execute(statement).mappings()
                    for part in found.partitions(at_once):
                        into.execute(table.insert(), [dict(row) for row in part])
                        rows[table.name] += len(part)
            engine = target
            then(into)
            _number_on(into, numbered, gap)
    except SQLAlchemyError as error:
        raise refused(error, engine) from error
    return rows


def _number_on(connection: Connection, table: Table, gap: int) -> None:
    """Let the next row of ``table`` have the number after its greatest one and ``gap`` others."""
    last = (connection.execute(select(func.max(table.c.number))).scalar() or 0) + gap
    if connection.dialect.name == "postgresql":
        # Explicit numbers do not move the sequence that the next rows take theirs from.
        sequence = func.pg_get_serial_sequence(table.name, "number")
        connection.execute(select(func.setval(sequence, last + 1, False)))
    elif gap:
        # SQLite has a row here only for a table of kind AUTOINCREMENT that has had rows.
        numbers = sql_table("sqlite_sequence", column("name"), column("seq"))
        connection.execute(delete(numbers).where(numbers.c.name == table.name))
        connection.execute(insert(numbers).values(name=table.name, seq=last))
