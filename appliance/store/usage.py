"""Sums of usage records by user, key, model, role, engine, outcome or day."""

from __future__ import annotations

import csv
import io
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, case, func, select
from sqlalchemy.exc import SQLAlchemyError

from appliance.errors import UsageError
from appliance.store.database import open_database, refused
from appliance.store.schema import USAGE

COLUMNS: dict[str, ColumnElement[str]] = {
    "user": USAGE.c.user,
    "key": USAGE.c.key_id,
    "model": USAGE.c.model,
    "role": USAGE.c.role,
    "engine": USAGE.c.engine,
    "outcome": USAGE.c.outcome,
}
BY = (*COLUMNS, "day")

FAILED = case((USAGE.c.status >= 400, 1), (USAGE.c.outcome != "ok", 1), else_=0)
"""1 for a request without a complete response, 0 for all others."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that a spreadsheet evaluates as a formula (OWASP, "CSV Injection")."""


@dataclass(frozen=True, slots=True)
class UsageLine:
    """Sums over the requests that share ``name``. Times in milliseconds."""

    name: str
    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    estimated: int
    queue_ms_mean: float
    ttft_ms_p50: float | None
    ttft_ms_p95: float | None


class UsageReader:
    """Reads usage records. Every method raises :class:`StoreError` if the database fails."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self._engine = open_database(folder, url)

    def sums(self, by: str, since: float, until: float | None = None, user: str | None = None) -> list[UsageLine]:
        """Return sums by one of :data:`BY` over requests that started from ``since`` to ``until``.

        Both are in seconds since the epoch. ``user`` selects one user with its end users, or one ``user/end-user``.
        Raises :class:`UsageError` if ``by`` is not one of :data:`BY`.
        """
        if by not in BY:
            raise UsageError(f"usage cannot be summed by {by!r}; take one of {', '.join(BY)}")
        column = self._day() if by == "day" else COLUMNS[by]
        end = time.time() + 60 if until is None else until
        within = (USAGE.c.started_at >= since) & (USAGE.c.started_at < end)
        if user is not None:
            # Not LIKE: names contain "_", and SQLite's LIKE ignores case.
            prefix = user + "/"
            within &= (USAGE.c.user == user) | (func.substr(USAGE.c.user, 1, len(prefix)) == prefix)
        statement = (
            select(
                column,
                func.count(),
                func.sum(FAILED),
                func.sum(USAGE.c.prompt_tokens),
                func.sum(USAGE.c.cached_tokens),
                func.sum(USAGE.c.completion_tokens),
                func.sum(case((USAGE.c.estimated, 1), else_=0)),
                func.avg(USAGE.c.queue_ms),
            )
            .where(within)
            .group_by(column)
            .order_by(func.sum(USAGE.c.completion_tokens).desc(), column)
        )
        # Exact percentiles need sorted values: SQLite has no function for them, so both databases get this query.
        times = (
            select(column, USAGE.c.ttft_ms).where(within, USAGE.c.ttft_ms.is_not(None)).order_by(USAGE.c.ttft_ms)
        )
        try:
            with self._engine.connect() as connection:
                ordered: dict[str, list[float]] = {}
                for name, ttft in connection.execute(times):
                    ordered.setdefault(str(name), []).append(ttft)
                rows = connection.execute(statement)
                return [
                    UsageLine(
                        str(name),
                        int(requests),
                        int(failures),
                        int(prompt),
                        int(cached),
                        int(completion),
                        int(estimated),
                        float(queue),
                        _percentile(ordered.get(str(name), []), 0.50),
                        _percentile(ordered.get(str(name), []), 0.95),
                    )
                    for name, requests, failures, prompt, cached, completion, estimated, queue in rows
                ]
        except SQLAlchemyError as error:
            raise refused(error, self._engine) from error

    def tokens(self, since: float, until: float) -> dict[str, int]:
        """Return prompt plus completion tokens by user from ``since`` to ``until``, in seconds since the epoch."""
        try:
            with self._engine.connect() as connection:
                return tokens_of_users(connection, since, until)
        except SQLAlchemyError as error:
            raise refused(error, self._engine) from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _day(self) -> ColumnElement[str]:
        """Return the column of the day in UTC, as ``YYYY-MM-DD``."""
        if self._engine.dialect.name == "sqlite":
            return func.date(USAGE.c.started_at, "unixepoch")
        return func.to_char(func.timezone("UTC", func.to_timestamp(USAGE.c.started_at)), "YYYY-MM-DD")


def tokens_of_users(connection: Connection, since: float, until: float) -> dict[str, int]:
    """Return prompt plus completion tokens by user, its end users included, of requests in a time.

    The request started from ``since`` to ``until``, both in seconds since the epoch.
    """
    statement = (
        select(USAGE.c.user, func.sum(USAGE.c.prompt_tokens + USAGE.c.completion_tokens))
        .where((USAGE.c.started_at >= since) & (USAGE.c.started_at < until))
        .group_by(USAGE.c.user)
    )
    found: dict[str, int] = {}
    for user, tokens in connection.execute(statement):
        account = str(user).partition("/")[0]
        found[account] = found.get(account, 0) + int(tokens)
    return found


def safe_cell(value: object) -> object:
    """Return ``value`` as a cell of a CSV file; a text that a spreadsheet would evaluate gets an apostrophe."""
    if value is None:
        return ""
    return "'" + value if isinstance(value, str) and value.startswith(FORMULA) else value


def as_csv(lines: list[UsageLine]) -> str:
    """Return ``lines`` as CSV with a header; a cell that a spreadsheet would evaluate gets an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in fields(UsageLine)])
    for line in lines:
        writer.writerow([safe_cell(value) for value in asdict(line).values()])
    return out.getvalue()


def _percentile(ordered: list[float], share: float) -> float | None:
    """Return a percentile of sorted values by nearest rank; ``None`` without values."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None
