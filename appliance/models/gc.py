"""Removes weights that no lock and no site names.

Everything else in the store stays: snapshots of a named revision with all their files, and folders that are not
those of a model. The plan is data, so that a first run only shows it.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import StoreError
from appliance.models import verified
from appliance.models.inventory import Snapshot, snapshots
from appliance.models.lock import Entry
from appliance.models.transfer import PARTIAL, held


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model that a site names: a repository, or a folder or file on disk.

    ``revision`` is ``None`` for a folder, or if every revision is named.
    """

    source: str
    revision: str | None

    def is_in(self, snapshot: Snapshot) -> bool:
        """Return whether it is ``snapshot``, or a path in it."""
        if self.source == snapshot.repository:
            return self.revision in (None, snapshot.revision)
        path = Path(self.source)
        return path.is_absolute() and path.resolve().is_relative_to(snapshot.folder.resolve())


@dataclass(frozen=True, slots=True)
class Removal:
    """A file or a folder to remove, and the bytes that this frees."""

    path: Path
    reason: str
    size: int


def plan(store: Path, entries: Sequence[Entry], named: Sequence[NamedModel]) -> list[Removal]:
    """Return the files and folders of ``store`` that neither ``entries`` of locks nor ``named`` models need.

    Raises :class:`StoreError` if the store cannot be read.
    """
    try:
        found = [*_unnamed_snapshots(store, entries, named), *_unlinked_blobs(store, entries, named)]
        found += _old_partials(store, entries)
        return _sized(found)
    except OSError as error:
        raise StoreError.unreadable(store, error) from None


def remove(store: Path, entries: Sequence[Entry], named: Sequence[NamedModel]) -> list[Removal]:
    """Remove what :func:`plan` returns, and return it.

    Raises :class:`StoreError` if another run holds the store or a file cannot be removed.
    """
    with held(store):
        removals = plan(store, entries, named)
        for one in removals:
            _remove(one.path)
        _remove_empty_models(store)
        record = verified.read(store)
        left = {one.key_of(path) for one in snapshots(store) for path in one.paths()}
        # Files outside of the hub's folders are not removed: without their records, their engines would not start.
        left |= {verified.key(one) for one in entries if one.is_local}
        verified.write(store, {name: hashed for name, hashed in record.items() if name in left})
    return removals


def _is_named(snapshot: Snapshot, entries: Sequence[Entry], named: Sequence[NamedModel]) -> bool:
    name = (snapshot.repository, snapshot.revision)
    return any((one.repository, one.revision) == name for one in entries) or any(
        one.is_in(snapshot) for one in named
    )


def _unnamed_snapshots(
    store: Path, entries: Sequence[Entry], named: Sequence[NamedModel]
) -> Iterator[tuple[Path, str]]:
    for one in snapshots(store):
        if not _is_named(one, entries, named):
            yield one.folder, f"{one.repository}@{one.revision[:12]}: no lock and no site names it"


def _unlinked_blobs(
    store: Path, entries: Sequence[Entry], named: Sequence[NamedModel]
) -> Iterator[tuple[Path, str]]:
    """Yield the blobs of a model hub's own cache to which no file of a named snapshot links."""
    kept = {path.resolve() for one in snapshots(store) if _is_named(one, entries, named) for path in one.paths()}
    for blob in sorted((store / "hub").glob("models--*--*/blobs/*")):
        if blob.resolve() not in kept:
            yield blob, f"{blob.parent.parent.name}: blob of no named revision"


def _old_partials(store: Path, entries: Sequence[Entry]) -> Iterator[tuple[Path, str]]:
    wanted = {one.sha256 for one in entries}
    for path in sorted((store / PARTIAL).glob("*")):
        if path.name != "lock" and path.name.partition(".")[0] not in wanted:
            yield path, "incomplete file that no lock names"


def _sized(found: list[tuple[Path, str]]) -> list[Removal]:
    """Add the bytes that each removal frees: those of the files whose last name is among the removals."""
    names: Counter[tuple[int, int]] = Counter()
    removals = []
    for path, reason in found:
        size = 0
        for file in _files(path):
            status = file.lstat()
            inode = (status.st_dev, status.st_ino)
            names[inode] += 1
            if names[inode] == status.st_nlink:
                size += status.st_size
        removals.append(Removal(path, reason, size))
    return removals


def _files(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder) / name for name in sorted(names))


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError.unwritable(path, error) from None


def _remove_empty_models(store: Path) -> None:
    """Remove the folders of models without a snapshot; only names of branches are left there."""
    for folder in sorted((store / "hub").glob("models--*--*")):
        if (folder / "snapshots").is_dir() and not any((folder / "snapshots").iterdir()):
            _remove(folder)
