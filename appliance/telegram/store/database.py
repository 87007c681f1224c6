"""Opens the bot's database; writes of one process are serialised, because SQLite has one writer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from appliance.store.database import DatabaseKind, open_database, refused
from appliance.telegram.store.schema import REVISIONS

FILE = "telegram.sqlite"
TELEGRAM = DatabaseKind(
    file=FILE,
    revisions=REVISIONS,
    migrations="appliance.telegram.store:migrations",
    version_table="telegram_alembic_version",
    setting="telegram.data_dir",
    durable=True,
)


class BotDatabase:
    """The database in ``folder``. Every block raises :class:`StoreError` if the database refuses a statement."""

    def __init__(self, folder: Path) -> None:
        self._engine = open_database(folder, None, TELEGRAM)
        self._write_lock = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection that reads."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise refused(error, self._engine) from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection in a transaction: the end of the block commits it, an error undoes it."""
        try:
            with self._write_lock, self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise refused(error, self._engine) from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
