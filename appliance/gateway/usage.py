"""One row per request, written to SQLite by a thread of its own so that no stream waits for a disk."""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
import time
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path

from appliance.errors import StoreError

LOG = logging.getLogger(__name__)

BATCH_S = 0.05
"""How long the writer gathers rows for one commit."""

RETRY_S = 1.0
MAX_WAITING = 100_000
"""Rows kept in memory while the disk refuses them; about 50 MB. Beyond, the oldest are dropped and counted."""


@dataclass(slots=True)
class UsageRow:
    """What one request used. Times in milliseconds, tokens as the engine reported them unless ``estimated``."""

    started_at: float
    request_id: str
    user: str
    key_id: str
    endpoint: str
    name: str = ""
    model: str = ""
    engine: str = ""
    stream: bool = False
    status: int = 0
    outcome: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    ttft_ms: float | None = None
    duration_ms: float = 0.0


COLUMNS = tuple(field.name for field in fields(UsageRow))
VALUES = attrgetter(*COLUMNS)
"""A row as a tuple; ``dataclasses.astuple`` copies deeply and cost 6 % of a request."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    started_at REAL NOT NULL,
    request_id TEXT NOT NULL,
    user TEXT NOT NULL,
    key_id TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    name TEXT NOT NULL,
    model TEXT NOT NULL,
    engine TEXT NOT NULL,
    stream INTEGER NOT NULL,
    status INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    estimated INTEGER NOT NULL,
    ttft_ms REAL,
    duration_ms REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS usage_started_at ON usage (started_at);
"""

INSERT = f"INSERT INTO usage ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608


class UsageWriter:
    """Takes rows from the event loop and commits them in batches."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "usage.sqlite"
        self.dropped = 0
        self._queue: queue.SimpleQueue[UsageRow | None] = queue.SimpleQueue()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
            with contextlib.closing(self._connect()) as db:
                db.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self.path}: cannot be opened ({error}); check the folder and its owner") from error
        self._thread = threading.Thread(target=self._run, name="usage-writer", daemon=True)
        self._thread.start()

    def put(self, row: UsageRow) -> None:
        """Hand over a finished row; never blocks."""
        self._queue.put(row)

    def close(self) -> None:
        """Commit what waits and stop; gives up on a disk that refuses."""
        self._queue.put(None)
        self._thread.join(timeout=10)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path)
        db.execute("PRAGMA busy_timeout = 2000")
        db.execute("PRAGMA journal_mode = WAL")
        # A power cut may lose the last moments' rows, never the file.
        db.execute("PRAGMA synchronous = NORMAL")
        return db

    def _run(self) -> None:
        db: sqlite3.Connection | None = None
        waiting: list[UsageRow] = []
        stopping = False
        while not (stopping and not waiting):
            stopping = self._gather(waiting) or stopping
            if len(waiting) > MAX_WAITING:
                self.dropped += len(waiting) - MAX_WAITING
                del waiting[: len(waiting) - MAX_WAITING]
            try:
                db = db or self._connect()
                with db:
                    db.executemany(INSERT, map(VALUES, waiting))
                waiting.clear()
            except sqlite3.Error as error:
                LOG.error(  # noqa: TRY400 - a full disk needs no traceback, every second
                    "%s: %d usage rows wait, the disk refuses them (%s)", self.path, len(waiting), error
                )
                if stopping:
                    self.dropped += len(waiting)
                    break
                time.sleep(RETRY_S)
        if db is not None:
            db.close()

    def _gather(self, waiting: list[UsageRow]) -> bool:
        """Add what arrives within a batch to ``waiting``; true once told to stop."""
        if not waiting:
            first = self._queue.get()
            if first is None:
                return True
            waiting.append(first)
            time.sleep(BATCH_S)
        while True:
            try:
                row = self._queue.get_nowait()
            except queue.Empty:
                return False
            if row is None:
                return True
            waiting.append(row)
