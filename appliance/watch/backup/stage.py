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
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from sqlalchemy import Connection, Engine, select

from appliance.contract.backup import BackupPlan
from appliance.contract.load import load
from appliance.contract.model import Section, Site
from appliance.errors import StoreError
from appliance.store.copies import check_sqlite, copy_rows, copy_sqlite
from appliance.store.database import open_database
from appliance.store.keys import KeyStore
from appliance.store.revision import FILE
from appliance.store.schema import BUDGET_NOTICES, CHANGES, INVITES, KEYS, PAYMENTS, USAGE, USERS
from appliance.store.usage import UsageReader
from appliance.system import files, lock_file

CURRENT, LOCK, MANIFEST = "current", "lock", "backup-manifest.json"
DRILL_USER = DRILL_MODEL = "restore-drill"
DRILL_KEY_S = 60 * 86400.0
"""Lifetime of the drill's key."""

AT_ONCE = 5000
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


def _check_and_close(file: Path) -> None:
    """Verify the pages of the copy, and leave one file without a journal."""
    check_sqlite(file, fix="restore the gateway's database from an earlier snapshot", close=True)
    (file.parent / ".database.lock").unlink(missing_ok=True)


def _copy_postgres(site: Site, data: Path, folder: Path) -> None:
    source, target = open_database(data, site.gateway.database_url), open_database(folder)
    try:
        copy_usage(source, target)
    finally:
        source.dispose()
        target.dispose()


def copy_usage(source: Engine, target: Engine, *, without_user: str | None = None) -> tuple[int, int]:
    """Copy keys, users and usage between two databases as of one moment; return the numbers of keys and usage rows.

    ``without_user`` omits the keys of that user. Raises :class:`StoreError` if either database fails, or if the
    target already has keys or usage: the copy must not mix two histories.
    """
    keys = select(KEYS) if without_user is None else select(KEYS).where(KEYS.c.user != without_user)
    rows = copy_rows(
        source,
        target,
        {KEYS: keys, **{table: select(table) for table in (USERS, INVITES, PAYMENTS, BUDGET_NOTICES, USAGE)}},
        process="gateway",
        numbered=USAGE,
        at_once=AT_ONCE,
        then=_count_a_change,
    )
    return rows[KEYS.name], rows[USAGE.name]


def _count_a_change(into: Connection) -> None:
    into.execute(CHANGES.update().values(number=CHANGES.c.number + 1))


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
