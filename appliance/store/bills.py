"""Bills: the usage of a month by user, model and role, as CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from appliance.store.calendar import Month
from appliance.store.database import open_database, refused
from appliance.store.schema import USAGE
from appliance.store.usage import FAILED, safe_cell


@dataclass(frozen=True, slots=True)
class BillLine:
    """The usage of one user, with its end users, of one model and role in a month."""

    month: str
    user: str
    plan: str
    price: str
    model: str
    role: str
    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


PlanOf = Callable[[str], tuple[str, str]]
"""Returns the name and the price of the plan of a user; empty texts without a plan."""


class BillReader:
    """Reads the bills of a site. Every method raises :class:`StoreError` if the database fails."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self._engine = open_database(folder, url)

    def lines(self, month: Month, plan_of: PlanOf, user: str | None = None) -> list[BillLine]:
        """Return the lines of ``month``, sorted by user, model and role.

        Args:
            month: The month; a request counts for the month in which it began.
            plan_of: The plans of the users, whose name and price each line has.
            user: One user; all users if absent.
        """
        keys = (USAGE.c.user, USAGE.c.model, USAGE.c.role)
        statement = (
            select(
                *keys,
                func.count(),
                func.sum(FAILED),
                func.sum(USAGE.c.prompt_tokens),
                func.sum(USAGE.c.cached_tokens),
                func.sum(USAGE.c.completion_tokens),
            )
            .where((USAGE.c.started_at >= month.since) & (USAGE.c.started_at < month.until))
            .group_by(*keys)
        )
        sums: dict[tuple[str, str, str], list[int]] = {}
        try:
            with self._engine.connect() as connection:
                for name, model, role, *counts in connection.execute(statement):
                    account = str(name).partition("/")[0]
                    if user is None or account == user:
                        line = sums.setdefault((account, model, role), [0] * len(counts))
                        line[:] = [one + int(more) for one, more in zip(line, counts, strict=True)]
        except SQLAlchemyError as error:
            raise refused(error, self._engine) from error
        plans = {account: plan_of(account) for account, _, _ in sums}
        return [
            BillLine(month.name, account, *plans[account], model, role, *sums[account, model, role])
            for account, model, role in sorted(sums)
        ]

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def bill_csv(lines: list[BillLine]) -> str:
    """Return ``lines`` as CSV with a header; a cell that a spreadsheet would evaluate gets an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in fields(BillLine)])
    for line in lines:
        writer.writerow([safe_cell(value) for value in asdict(line).values()])
    return out.getvalue()
