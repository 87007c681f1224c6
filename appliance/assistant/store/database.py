"""Opens the assistant's database, and runs transactions in it.

Writes of one process are serialised: SQLite has one writer, and a waiting one would only poll. A request that reads
never waits for a write.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from appliance.assistant.store.schema import REVISIONS
from appliance.contract.model import Assistant, Site
from appliance.errors import ConfigError
from appliance.store.database import DatabaseKind, open_database, refused

FILE = "assistant.sqlite"
ASSISTANT = DatabaseKind(
    file=FILE,
    revisions=REVISIONS,
    migrations="appliance.assistant.store:migrations",
    version_table="assistant_alembic_version",
    setting="assistant.database_url",
    durable=True,
)


class Database:
    """The database of one site. Every block raises :class:`StoreError` if the database refuses a statement."""

    def __init__(self, folder: Path, url: str | None = None, *, read_only: bool = False) -> None:
        self.engine = open_database(folder, url, ASSISTANT, read_only=read_only)
        self._write_lock = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection that reads one state of the database."""
        try:
            with self.engine.connect() as connection:
                if self.engine.dialect.name == "sqlite":
                    # The driver itself begins a transaction only before a statement that writes.
                    connection.exec_driver_sql("BEGIN")
                else:
                    connection.execution_options(isolation_level="REPEATABLE READ")
                yield connection
        except SQLAlchemyError as error:
            raise refused(error, self.engine) from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection in a transaction: the end of the block commits it, an error undoes it."""
        try:
            with self._write_lock, self.engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise refused(error, self.engine) from error

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def assistant_of(site: Site) -> Assistant:
    """Return the settings of the assistant of ``site``; raises :class:`ConfigError` if it has none."""
    if site.assistant is None:
        raise ConfigError("this site has no assistant; add a section [assistant]")
    return site.assistant
