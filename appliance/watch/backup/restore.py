"""Restores a snapshot into an empty folder, verifies it against its manifest, and loads its keys and usage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.contract.model import Site
from appliance.errors import StoreError
from appliance.store.copies import check_sqlite, copy_sqlite
from appliance.store.database import open_database
from appliance.store.revision import FILE
from appliance.system import files
from appliance.watch.backup.restic import Restic
from appliance.watch.backup.stage import (
    DRILL_USER,
    MANIFEST,
    Manifest,
    copy_usage,
    read_manifest,
    sha256,
    usage_sums,
)


@dataclass(frozen=True, slots=True)
class RestoredCopy:
    """A verified copy: its folder, which holds the database, and its manifest."""

    folder: Path
    manifest: Manifest


def restore(restic: Restic, target: Path, *, host: str, snapshot: str = "latest", timeout_s: float) -> None:
    """Restore ``snapshot`` of ``host`` into ``target``, which must be empty or absent.

    Raises :class:`StoreError` with restic's reason; a damaged pack is one.
    """
    files.make_folder(target)
    if any(target.iterdir()):
        raise StoreError(f"{target} is not empty; restore into a new folder, so that no older file remains in it")
    # Without the lock: a restore must work while the server accepts no new file.
    arguments = ["restore", snapshot, "--no-lock", "--host", host, "--target", str(target)]
    done = restic.run(*arguments, timeout_s=timeout_s)
    if not done.ok:
        raise StoreError(f"the snapshot {snapshot} cannot be restored: {done.reason}")


def verify(target: Path, work: Path) -> RestoredCopy:
    """Verify the restored copy in ``target``: hashes, the database's pages, sums of usage.

    ``work`` is a folder for a copy of the database, because reading it may change it. Raises :class:`StoreError`
    with the first difference.
    """
    found = sorted(target.rglob(MANIFEST))
    if len(found) != 1:
        raise StoreError(f"{target} has {len(found)} files {MANIFEST}; a snapshot of the appliance has one")
    folder = found[0].parent
    manifest = read_manifest(folder)
    for name, digest in manifest.files.items():
        if not (folder / name).is_file():
            raise StoreError(f"{folder / name} is missing in the snapshot; restore an earlier one (--snapshot)")
        if sha256(folder / name) != digest:
            raise StoreError(f"{folder / name} differs from its hash; restore an earlier one (--snapshot)")
    if (folder / FILE).exists():
        files.make_folder(work)
        copy_sqlite(folder / FILE, work / FILE)
        check_sqlite(work / FILE, fix="restore an earlier snapshot (--snapshot)")
        sums = usage_sums(work)
        if sums != list(manifest.usage):
            raise StoreError(f"{folder / FILE}: the sums of usage differ from the manifest; restore an earlier one")
    return RestoredCopy(folder, manifest)


def load_database(source: Path, site: Site, base: Path, work: Path, report: Callable[[str], None] = print) -> None:
    """Load keys and usage of the restored folder ``source`` into the empty database of ``site``.

    Raises :class:`StoreError` if the copy is damaged, or if the database already has keys or usage.
    """
    copy = verify(source, work)
    if not (work / FILE).exists():
        raise StoreError(f"{copy.folder} has no database; this snapshot is of a machine without a gateway")
    origin = open_database(work)
    target = open_database(site.data_path(base), site.gateway.database_url)
    try:
        keys, rows = copy_usage(origin, target, without_user=DRILL_USER)
    finally:
        origin.dispose()
        target.dispose()
    report(f"loaded {keys} keys and {rows} usage records of {copy.manifest.host}")
