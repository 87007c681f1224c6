"""Writes one usage row per request, in a thread of its own so that no stream waits for a disk."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import fields
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, delete, func, select
from sqlalchemy.exc import DataError, SQLAlchemyError

from appliance.store.database import open_database, refused
from appliance.store.models import UsageRow
from appliance.store.schema import USAGE
from appliance.store.usage_days import forget_days, is_closed, store_days, tokens_of_days

LOG = logging.getLogger(__name__)

BATCH_S = 0.05
"""Seconds for which the writer collects rows for one commit."""

CHUNK = 100
"""Rows per statement. One statement with many rows releases the interpreter's lock once, not once per row.

With one row each, the writer and the event loop woke each other 16,000 times per second and halved the request
rate."""

RETRY_S = 1.0
"""Seconds after a failed commit before the next one."""

MAX_WAITING = 100_000
"""Rows kept in memory while the database rejects them; about 50 MB. Beyond, the oldest are dropped and counted."""

DAY_S = 86400.0

UNSTORABLE = (DataError, OverflowError, ValueError)
"""Errors caused by a row's values, not by the disk: the database's own, and the driver's from SQLAlchemy."""

TRUSTED_S = 30 * DAY_S
"""Seconds by which a clock may be ahead of the newest row and still be trusted for deleting old rows."""


COLUMNS = tuple(field.name for field in fields(UsageRow))
VALUES = attrgetter(*COLUMNS)
"""Returns a row as a tuple; ``dataclasses.astuple`` copies deeply and cost 6 % of a request."""


T = TypeVar("T")


class UsageWriter:
    """Receives rows from the event loop and commits them in batches.

    Args:
        folder: Data folder of the SQLite database.
        url: PostgreSQL's URL instead of SQLite.
        keep_days: Days for which rows are kept.
        clock: Time in seconds since the epoch.
    """

    def __init__(
        self,
        folder: Path,
        url: str | None = None,
        *,
        keep_days: int = 400,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.dropped = 0
        self._engine = open_database(folder, url)
        self._keep_s = keep_days * DAY_S
        self._clock = clock
        self._pruned_at = float("-inf")
        self._rows: deque[UsageRow] = deque()
        self._stop = threading.Event()
        self.accepted = 0
        """Rows added so far: the number of the last one."""
        self._handled = 0
        """Rows that are committed or dropped."""
        self._committing = threading.Lock()
        """Held while rows are committed and counted; the event loop never takes it."""
        self._statements = {count: _insert(self._engine, count) for count in (1, CHUNK)}
        self._thread = threading.Thread(target=self._run, name="usage-writer", daemon=True)
        self._thread.start()

    def put(self, row: UsageRow) -> None:
        """Add a finished row; never blocks."""
        self.accepted += 1
        self._rows.append(row)

    def consistent(self, read: Callable[[Connection], T]) -> tuple[int, T]:
        """Run ``read`` on a view of the table as of one moment, in the caller's thread.

        Returns:
            The number of rows of this writer that the view contains or that were dropped; the result of ``read``.

        Raises:
            StoreError: The database fails.
        """
        try:
            with self._engine.connect() as connection:
                if self._engine.dialect.name == "sqlite":
                    # SQLite's driver begins no transaction for a SELECT.
                    connection.exec_driver_sql("BEGIN")
                else:
                    connection.execution_options(isolation_level="REPEATABLE READ")
                with self._committing:
                    # The view begins with the first statement that reads.
                    connection.execute(select(func.max(USAGE.c.number)))
                    number = self._handled
                return number, read(connection)
        except SQLAlchemyError as error:
            raise refused(error, self._engine) from error

    def days(self, days: range) -> tuple[int, dict[int, dict[str, int]]]:
        """Return the number of rows as :meth:`consistent` does, and the tokens of users by day.

        Sums of closed days are stored, so that the next call does not compute them. Raises :class:`StoreError`.
        """
        number, (sums, computed) = self.consistent(lambda connection: tokens_of_days(connection, days))
        now = self._clock()
        closed = {day: sums[day] for day in computed if is_closed(day, now)}
        try:
            with self._committing:
                # Rows that were committed since the view would be missing from a stored sum for good.
                if self._handled == number:
                    store_days(self._engine, closed)
        except SQLAlchemyError as error:
            raise refused(error, self._engine) from error
        return number, sums

    def close(self) -> None:
        """Commit the waiting rows and stop; drop them if the database rejects them."""
        self._stop.set()
        self._thread.join(timeout=10)
        self._engine.dispose()

    def _run(self) -> None:
        waiting: list[UsageRow] = []
        reported = False
        stopping = False
        while not (stopping and not waiting):
            stopping = self._stop.wait(RETRY_S if reported else BATCH_S)
            waiting += [self._rows.popleft() for _ in range(len(self._rows))]
            if len(waiting) > MAX_WAITING:
                self.dropped += len(waiting) - MAX_WAITING
                self._handled += len(waiting) - MAX_WAITING
                del waiting[: len(waiting) - MAX_WAITING]
            try:
                if waiting:
                    self._commit_storable(waiting)
                    waiting.clear()
                    reported = False
                self._prune()
            except SQLAlchemyError as error:
                if not reported:
                    # Once: a full disk needs neither a line nor a traceback every second.
                    cause = str(getattr(error, "orig", error)).strip().splitlines()[0]
                    LOG.error("usage rows wait in memory because the database rejects them (%s)", cause)  # noqa: TRY400
                reported = True
                if stopping:
                    self.dropped += len(waiting)
                    break

    def _commit_storable(self, rows: list[UsageRow]) -> None:
        """Commit ``rows``; drop only those that no database can hold, such as a count beyond 64 bits."""
        with self._committing:
            try:
                self._commit(rows)
            except UNSTORABLE:
                self._commit_one_by_one(rows)
            self._handled += len(rows)

    def _commit_one_by_one(self, rows: list[UsageRow]) -> None:
        for row in rows:
            try:
                self._commit([row])
            except UNSTORABLE:
                self.dropped += 1
                LOG.exception("a usage row cannot be stored", extra={"fields": {"request_id": row.request_id}})

    def _commit(self, rows: list[UsageRow]) -> None:
        with self._engine.begin() as connection:
            whole = len(rows) - len(rows) % CHUNK
            for start in range(0, whole, CHUNK):
                values = tuple(chain.from_iterable(map(VALUES, rows[start : start + CHUNK])))
                connection.exec_driver_sql(self._statements[CHUNK], values)
            for row in rows[whole:]:
                connection.exec_driver_sql(self._statements[1], VALUES(row))
            forget_days(connection, (row.started_at for row in rows))

    def _prune(self) -> None:
        """Delete rows that are too old, once a day, by the wall clock that dates the rows.

        A clock that was set years ahead, by a drained battery or a bad time server, must not empty the table.
        """
        now = self._clock()
        if 0 <= now - self._pruned_at < DAY_S:
            return
        self._pruned_at = now
        with self._engine.begin() as connection:
            # Rows from the future were written with an incorrect clock and prove nothing about this one.
            newest = connection.execute(
                select(func.max(USAGE.c.started_at)).where(USAGE.c.started_at < now)
            ).scalar()
            if newest is not None:
                until = min(now, newest + TRUSTED_S) - self._keep_s
                connection.execute(delete(USAGE).where(USAGE.c.started_at < until))


def _insert(engine: Engine, count: int) -> str:
    """Return an INSERT of ``count`` rows with positional parameters, as the driver needs them."""
    quote = engine.dialect.identifier_preparer.quote
    mark = "?" if engine.dialect.paramstyle == "qmark" else "%s"
    row = f"({', '.join([mark] * len(COLUMNS))})"
    names = ", ".join(quote(name) for name in COLUMNS)
    return f"INSERT INTO {USAGE.name} ({names}) VALUES {', '.join([row] * count)}"  # noqa: S608
