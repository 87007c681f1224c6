"""Makes the consistent copy that a backup saves: keys and usage from the running database, and the configuration.

The copy is always one SQLite file, also of a PostgreSQL database. The drill can open it without a server, it does
not depend on the version of ``pg_dump``, and ``appliance backup load`` reads it into either database. It holds one
more key, of the user ``restore-drill``, whose secret is in the manifest. That key may use only a model that no site
has, so it is worth nothing outside the drill.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from appliance.contract.backup import BackupPlan
from appliance.contract.load import load
from appliance.contract.model import Section, Site
from appliance.errors import StoreError
from appliance.store.database import FILE, open_database, refused
from appliance.store.keys import KeyStore
from appliance.store.schema import CHANGES, KEYS, USAGE
from appliance.store.usage import UsageReader
from appliance.system import files, lock_file

CURRENT, LOCK, MANIFEST = "current", "lock", "backup-manifest.json"
DRILL_USER = DRILL_MODEL = "restore-drill"
DRILL_KEY_S = 60 * 86400.0
"""Lifetime of the drill's key."""

BATCH = 5000
"""Rows that a copy between databases holds in memory."""


class Manifest(Section):
    """The content of a copy, so that a restore can be checked without the machine that made it."""

    version: Literal[1]
    host: str
    made_at: float
    files: dict[str, str] = Field(description="SHA-256 of each file, by its path in the copy.")
    keys: int
    usage: tuple[dict[str, str | int], ...] = Field(description="Sums by user.")
    drill_key: str | None = Field(default=None, repr=False)


def stage(plan: BackupPlan, *, now: float) -> Manifest | None:
    """Replace the copy in the stage of ``plan``; ``None`` if a running backup still reads the present one.

    Raises :class:`StoreError` or :class:`ConfigError` if something cannot be read or written; the earlier copy then
    stays.
    """
    folder = Path(plan.stage)
    files.make_folder(folder)
    try:
        lock = lock_file.take(folder / LOCK)
    except lock_file.HeldError:
        return None
    try:
        new, current, old = folder / "new", folder / CURRENT, folder / "old"
        for left in (new, old):
            _remove(left)
        files.make_folder(new)
        manifest = _fill(plan, new, now)
        if current.exists():
            files.move(current, old)
        files.move(new, current)
        _remove(old)
        return manifest
    finally:
        lock.release()


def _fill(plan: BackupPlan, folder: Path, now: float) -> Manifest:
    keys, drill_key = 0, None
    usage: list[dict[str, str | int]] = []
    if plan.site is not None:
        site = load(Path(plan.site))
        data = site.data_path(Path(plan.base))
        if site.gateway.database_url is None and (data / FILE).exists():
            copy_sqlite(data / FILE, folder / FILE)
        elif site.gateway.database_url is not None:
            _copy_postgres(site, data, folder)
        keys, usage, drill_key = _summarise(folder, now)
    for path in plan.copies:
        _copy_tree(Path(path), folder / "files" / path.lstrip("/"))
    manifest = Manifest(
        version=1,
        host=plan.host,
        made_at=now,
        files={str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()},
        keys=keys,
        usage=tuple(usage),
        drill_key=drill_key,
    )
    files.replace(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n", mode=0o600)
    return manifest


def _summarise(folder: Path, now: float) -> tuple[int, list[dict[str, str | int]], str]:
    """Return the number of keys, the sums of usage and the drill's key, which this adds to the copy."""
    sums = usage_sums(folder)
    store = KeyStore(folder)
    try:
        keys = len(store.all())
        drill_key = store.create(DRILL_USER, models=[DRILL_MODEL], expires_at=now + DRILL_KEY_S)
    finally:
        store.close()
    _check_and_close(folder / FILE)
    return keys, sums, drill_key


def usage_sums(folder: Path) -> list[dict[str, str | int]]:
    """Return the sums of usage by user in the database of ``folder``."""
    reader = UsageReader(folder)
    try:
        lines = reader.sums("user", 0, 1e12)
    finally:
        reader.close()
    return [{k: v for k, v in asdict(line).items() if isinstance(v, (str, int))} for line in lines]


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a database that is in use, as of one moment; raises :class:`StoreError`."""
    try:
        with closing(sqlite3.connect(source, timeout=30)) as used, closing(sqlite3.connect(target)) as copy:
            used.backup(copy)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"{source} cannot be copied to {target} ({error}); check the file, its owner and the free space"
        ) from None


def _check_and_close(file: Path) -> None:
    """Verify the pages of the copy, and leave one file without a journal."""
    try:
        with closing(sqlite3.connect(file)) as database:
            found = database.execute("PRAGMA integrity_check").fetchone()[0]
            database.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise StoreError(f"{file} is damaged ({found}); restore the gateway's database from an earlier snapshot")
    (file.parent / ".database.lock").unlink(missing_ok=True)


def _copy_postgres(site: Site, data: Path, folder: Path) -> None:
    source, target = open_database(data, site.gateway.database_url), open_database(folder)
    try:
        copy_rows(source, target)
    finally:
        source.dispose()
        target.dispose()


def copy_rows(source: Engine, target: Engine, *, without_user: str | None = None) -> tuple[int, int]:
    """Copy keys and usage between two databases as of one moment; return the numbers of keys and usage rows.

    ``without_user`` omits the keys of that user. Raises :class:`StoreError` if either database fails, or if the
    target already has keys or usage: the copy must not mix two histories.
    """
    engine = target
    try:
        with target.begin() as into:
            for table in (KEYS, USAGE):
                if into.execute(select(func.count()).select_from(table)).scalar_one():
                    raise StoreError(
                        f"the database already has {table.name}; load a backup into an empty one: stop the gateway "
                        "and move its database away"
                    )
            engine = source
            level = "REPEATABLE READ" if source.dialect.name == "postgresql" else "SERIALIZABLE"
            with source.connect().execution_options(isolation_level=level) as out:
                keys = select(KEYS) if without_user is None else select(KEYS).where(KEYS.c.user != without_user)
                counts = _copy_table(out, into, keys, KEYS), _copy_table(out, into, select(USAGE), USAGE)
            engine = target
            into.execute(CHANGES.update().where(CHANGES.c.what == "keys").values(number=CHANGES.c.number + 1))
            if target.dialect.name == "postgresql":
                # Explicit numbers do not move the sequence that the next rows take theirs from.
                into.exec_driver_sql(
                    "SELECT setval(pg_get_serial_sequence('usage', 'number'), "
                    "(SELECT coalesce(max(number), 0) + 1 FROM usage), false)"
                )
            return counts
    except SQLAlchemyError as error:
        raise refused(error, engine) from error


def _copy_table(out: Connection, into: Connection, statement: Any, table: Any) -> int:
    count = 0
    for rows in out.execution_options(yield_per=BATCH).execute(statement).mappings().partitions(BATCH):
        into.execute(table.insert(), [dict(row) for row in rows])
        count += len(rows)
    return count


def _copy_tree(source: Path, target: Path) -> None:
    """Copy files through symbolic links: NixOS's /etc has links into the store, which a restore would lack."""
    try:
        if source.is_dir():
            shutil.copytree(source, target, symlinks=False, dirs_exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        for folder in (target, *(one for one in target.rglob("*") if one.is_dir())):
            # The store's folders are read-only, and the next run could not remove their copies.
            folder.chmod(0o700)
    except (OSError, shutil.Error) as error:
        raise StoreError(
            f"{source} cannot be copied to {target} ({error}); check its files and the space"
        ) from None


def _remove(folder: Path) -> None:
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise StoreError.unwritable(folder, error) from None


def sha256(file: Path) -> str:
    """Return the SHA-256 of ``file``; raises :class:`StoreError`."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise StoreError.unreadable(file, error) from None


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the copy in ``folder``; raises :class:`StoreError` if there is none."""
    file = folder / MANIFEST
    content = files.read(file)
    if content is None:
        raise StoreError(f"{file} does not exist: no copy was made, or this snapshot is not one of the appliance")
    try:
        return Manifest.model_validate_json(json.dumps(json.loads(content)))
    except (ValueError, ValidationError):
        raise StoreError(
            f"{file} is not a manifest of this version; use the version that made the backup"
        ) from None
