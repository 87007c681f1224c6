"""The gateway's SQLite file of keys and usage."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from appliance.contract.model import Site
from appliance.doctor.check import (
    NotApplicable,
    check,
    site_with_gateway,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, unknown, warn
from appliance.doctor.host import CannotLookError
from appliance.store.revision import FILE, REVISION, REVISIONS

QUICK_CHECK_S = 20.0


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """The SQLite file of keys and usage."""

    file: str
    exists: bool
    error: str = ""
    integrity: str = "ok"
    revision: str | None = None
    keys: int = 0


def read_database(folder: Path, now: float) -> DatabaseFacts:
    """Read the database without creating a file: the gateway cannot open a file that root creates.

    ``now`` is in Unix seconds. Raises :class:`CannotLookError` if the database may not be read.
    """
    path = folder / FILE
    try:
        if not path.exists():
            return DatabaseFacts(str(path), exists=False)
        # If the shared memory exists, a reader creates no file; without it no process has the database open.
        mode = "mode=ro" if path.with_name(f"{FILE}-shm").exists() else "mode=ro&immutable=1"
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=5)) as db:
            deadline = time.monotonic() + QUICK_CHECK_S
            db.set_progress_handler(lambda: int(time.monotonic() > deadline), 100_000)
            integrity = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
            revision = db.execute("SELECT version_num FROM alembic_version").fetchone()
            live = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)"
            keys = db.execute(f"SELECT count(*) FROM keys WHERE {live}", (now,)).fetchone()[0]  # noqa: S608
        return DatabaseFacts(
            file=str(path),
            exists=True,
            error="",
            integrity=integrity,
            revision=str(revision[0]) if revision else None,
            keys=int(keys),
        )
    except PermissionError as error:
        raise CannotLookError(f"{path}: {error.strerror}", "run `appliance doctor` as root") from error
    except (OSError, sqlite3.Error) as error:
        return DatabaseFacts(str(path), exists=True, error=str(error))


def judge_database(facts: DatabaseFacts) -> Finding:
    """Judge whether the database is readable, intact, of this version, and has an active key."""
    if not facts.exists:
        return warn(
            f"{facts.file} does not exist yet",
            meaning="The gateway creates it at its first start; until then there are no keys.",
            fix="systemctl start appliance-gateway; appliance-keys create NAME",
        )
    if "interrupted" in facts.error:
        return unknown(
            f"{facts.file} is too large to check within {QUICK_CHECK_S:g} s",
            fix=f"sqlite3 {facts.file} 'PRAGMA quick_check'",
        )
    damage = facts.error or ("" if facts.integrity == "ok" else facts.integrity.splitlines()[0])
    if damage:
        return fail(
            f"{facts.file}: {damage}",
            meaning="It is damaged or not a database: the gateway cannot authenticate its users.",
            fix="systemctl stop appliance-gateway; restore the newest backup of it",
            cause="database",
        )
    if facts.revision not in REVISIONS:
        return fail(
            f"its schema is {facts.revision}, this version has {REVISION}",
            meaning="A newer version created it; this one does not start.",
            fix="switch to the newer system, or restore the backup from before",
            cause="database",
        )
    if facts.keys == 0:
        return warn(
            "intact, without an active key", meaning="Every request gets 401.", fix="appliance-keys create NAME"
        )
    return ok(f"intact; {facts.keys} active keys")


def site_with_sqlite(context: CheckContext) -> Site | NotApplicable:
    """Require keys and usage in SQLite on this host."""
    if context.site is not None and context.site.gateway.database_url is not None:
        return NotApplicable("keys and usage are in PostgreSQL, which the gateway checks itself")
    return site_with_gateway(context)


@check(
    "database",
    looks="the SQLite file of keys and usage: intact, of this version, with an active key; opened read-only",
    means="The gateway cannot authenticate its users.",
    fix="restore the newest backup",
    requires=site_with_sqlite,
    fault_domain="generation",
)
def check_database(context: CheckContext, site: Site) -> Iterator[Finding]:
    """Check keys and usage."""
    yield judge_database(read_database(context.data_folder(site), context.now))
