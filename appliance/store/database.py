"""Opens a database of the appliance and migrates its tables: the gateway's, or another one of its processes."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, column, create_engine, event, inspect, select, table, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from appliance.errors import StoreError, existing, write_fix
from appliance.store.revision import FILE, REVISIONS

BUSY_MS = 5000
CONNECT_S = 5
ADVISORY_LOCK = 0x61_70_70_6C
"""Lock of PostgreSQL for migrations ("appl"): two gateways that start at once migrate one after the other."""


@dataclass(frozen=True, slots=True)
class DatabaseKind:
    """The tables of one process: their file, their migrations, their setting."""

    file: str
    """Name of the SQLite file."""
    revisions: tuple[str, ...]
    """All migrations of this version, oldest first."""
    migrations: str
    """Package and folder of the migrations, as Alembic names them."""
    version_table: str
    """Table with the present revision; each kind has its own, so that kinds can share one PostgreSQL."""
    setting: str
    """Setting with the URL, for messages."""
    durable: bool = False
    """Whether SQLite waits for the disk at each commit. Otherwise a power failure may cost the last rows."""


GATEWAY = DatabaseKind(
    file=FILE,
    revisions=REVISIONS,
    migrations="appliance.store:migrations",
    version_table="alembic_version",
    setting="gateway.database_url",
)


def open_database(
    folder: Path, url: str | None = None, kind: DatabaseKind = GATEWAY, *, read_only: bool = False
) -> Engine:
    """Return the database at ``url``, or the SQLite file of ``kind`` in ``folder``, with migrated tables.

    A ``read_only`` one exists already and refuses to be changed; it gets no migrations.

    Raises :class:`StoreError` if it cannot be reached, or if another version created it.
    """
    name = str(folder / kind.file) if url is None else make_safe(url, kind.setting)
    if read_only and url is None and not (folder / kind.file).is_file():
        raise StoreError(f"{name}: does not exist yet; the first start of its process creates it")
    try:
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True)
        engine = _sqlite(folder / kind.file, durable=kind.durable) if url is None else _postgres(url, kind.setting)
        try:
            if read_only:
                _refuse_changes(engine)
                _expect_newest(engine, name, kind)
                return engine
            with _alone(folder):
                upgrade(engine, name, kind)
        except BaseException:
            engine.dispose()
            raise
    except (OSError, sqlite3.Error, SQLAlchemyError) as error:
        fix = "check that PostgreSQL runs and that PGPASSFILE holds the password"
        if url is None:
            fix = _fix(folder / kind.file, error) or "check the folder and its owner"
        raise StoreError(f"{name}: cannot be opened ({_first(error)}); {fix}") from error
    return engine


def refused(error: SQLAlchemyError, engine: Engine) -> StoreError:
    """Return the error for a statement that the database of ``engine`` refused: database, cause, fix."""
    if engine.dialect.name == "sqlite":
        path = Path(engine.url.database or FILE)
        name, fix = str(path), _fix(path, error) or "check the file and its disk"
    else:
        name, fix = make_safe(str(engine.url)), "check that it runs and that its disk has free space"
    return StoreError(f"{name}: the database refuses ({_first(error)}); {fix}")


def _cause(error: Exception) -> BaseException:
    return error.orig or error if isinstance(error, DBAPIError) else error


def _first(error: Exception) -> str:
    """Return the first line of the reason that the database, or the system, gave."""
    cause = _cause(error)
    if isinstance(cause, OSError):
        return cause.strerror or str(cause)
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__


def _fix(path: Path, error: Exception) -> str | None:
    """Return the fix for a refused SQLite file by its cause; ``None`` for a cause without a fix of its own."""
    cause = _cause(error)
    if isinstance(cause, OSError):
        return write_fix(Path(cause.filename) if isinstance(cause.filename, str) else path, cause.errno)
    # The low byte is the primary result code, the other bytes extend it.
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return write_fix(path, errno.ENOSPC)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR):
        return write_fix(path, _refusal(path))
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return "restore it from a backup, or move it away and create all keys again"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"another process holds it: `fuser {path}` shows which"
    return None


def _refusal(path: Path) -> int:
    """Return why SQLite could not write ``path`` or its journal, as an errno: SQLite does not keep it."""
    disk = os.statvfs(existing(path.parent))
    if disk.f_flag & os.ST_RDONLY:
        return errno.EROFS
    if disk.f_bavail == 0:
        return errno.ENOSPC
    files = [path, *path.parent.glob(f"{path.name}-*"), path.parent]
    if any(os.access(file, os.F_OK) and not os.access(file, os.W_OK) for file in files):
        return errno.EACCES
    return errno.EIO


def make_safe(url: str, setting: str = GATEWAY.setting) -> str:
    """Return ``url`` without its password, for messages; raises :class:`StoreError` if it is not a URL."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        raise StoreError(
            f"{setting} is not a URL; write it like postgresql://appliance@localhost/appliance"
        ) from None


def upgrade(engine: Engine, name: str, kind: DatabaseKind = GATEWAY) -> None:
    """Run the missing migrations of the database ``name``, which has the tables of ``kind``.

    Raises :class:`StoreError` if a newer version created it.
    """
    with engine.connect() as connection:
        current = _revision(connection, kind)
    newest = kind.revisions[-1]
    if current == newest:
        return
    if current is not None and current not in kind.revisions:
        raise StoreError(
            f"{name}: was made by a newer version (its schema is {current}, this version has {newest}); "
            "upgrade the appliance, or restore an older backup"
        )
    # Imported late: a gateway whose tables are up to date never needs it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", kind.migrations)
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})
        config.attributes["connection"] = connection
        config.attributes["version_table"] = kind.version_table
        command.upgrade(config, "head")


def _refuse_changes(engine: Engine) -> None:
    statement = (
        "PRAGMA query_only = ON"
        if engine.dialect.name == "sqlite"
        else "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.execute(statement)
        connection.commit()


def _expect_newest(engine: Engine, name: str, kind: DatabaseKind) -> None:
    with engine.connect() as connection:
        current = _revision(connection, kind)
    if current != kind.revisions[-1]:
        raise StoreError(
            f"{name}: has the schema {current}, and this version reads {kind.revisions[-1]}; "
            "restart its process with this version first"
        )


def _revision(connection: Connection, kind: DatabaseKind) -> str | None:
    if not inspect(connection).has_table(kind.version_table):
        return None
    versions = table(kind.version_table, column("version_num"))
    found = connection.execute(select(versions.c.version_num)).scalar()
    return None if found is None else str(found)


def _sqlite(path: Path, *, durable: bool) -> Engine:
    # Create the file with its mode before SQLite does: it holds digests, users' names and their chats.
    path.touch(mode=0o600)
    engine = create_engine(
        f"sqlite:///{path}", connect_args={"timeout": BUSY_MS / 1000, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        # With NORMAL, a power failure may lose the last rows, but never damages the file.
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")

    return engine


def _postgres(url: str, setting: str) -> Engine:
    make_safe(url, setting)
    parsed = make_url(url)
    if parsed.get_backend_name() != "postgresql":
        raise StoreError(f"{setting}: {parsed.get_backend_name()} is not supported; use postgresql://…")
    return create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        pool_size=2,
        connect_args={"connect_timeout": CONNECT_S},
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of migrations in ``folder``: one process at a time."""
    with (folder / ".database.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
