"""``verified``: the files of a store whose SHA-256 was computed, as they were at that moment.

A hash of hundreds of gigabytes takes minutes, so an engine cannot wait for one at each start. This record holds
the size, the time of the last change and the inode of each file that was hashed. A file with the same three is
taken for the same content. The record is in the store, and is replaced as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import StoreError
from appliance.models.lock import Entry
from appliance.system import files

NAME = "verified"
"""Name of the record in a store."""

HEADER = "# sha256  size  mtime in ns  inode  repository@revision  file; written by `appliance models`\n"

LINE = re.compile(
    r"(?P<sha256>[0-9a-f]{64})  (?P<size>\d{1,15})  (?P<mtime>-?\d{1,20})  (?P<inode>\d{1,20})  "
    r"(?P<key>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+@[0-9a-f]{40}  \S+)"
)


@dataclass(frozen=True, slots=True)
class FileState:
    """A file at the moment of its hash: size in bytes, time of the last change in nanoseconds, inode."""

    size: int
    mtime: int
    inode: int


@dataclass(frozen=True, slots=True)
class HashedFile:
    """The SHA-256 of a file, and the state in which it had that SHA-256."""

    sha256: str
    state: FileState


Record = dict[str, HashedFile]
"""Hashed files by :func:`key`."""


def file_key(repository: str, revision: str, file: str) -> str:
    """Return the name of a file of a model in the record; ``file`` is its path below the model's snapshot."""
    return f"{repository}@{revision}  {file}"


def key(entry: Entry) -> str:
    """Return the name of the file of ``entry`` in the record."""
    return file_key(entry.repository, entry.revision, entry.file)


def state_of(path: Path) -> FileState:
    """Return the present state of ``path``; raises :class:`OSError`."""
    found = path.stat()
    return FileState(found.st_size, found.st_mtime_ns, found.st_ino)


def read(store: Path) -> Record:
    """Return the record of ``store``, empty if it has none; raises :class:`StoreError` for an invalid line."""
    path = store / NAME
    record: Record = {}
    for number, line in enumerate((files.read(path) or b"").decode("utf-8", "replace").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise StoreError(f"{path}: line {number} is not valid; remove the file, then `appliance models verify`")
        state = FileState(int(match["size"]), int(match["mtime"]), int(match["inode"]))
        record[match["key"]] = HashedFile(match["sha256"], state)
    return record


def write(store: Path, record: Record) -> None:
    """Replace the record of ``store``; raises :class:`StoreError` if it cannot be written."""
    lines = [
        f"{one.sha256}  {one.state.size}  {one.state.mtime}  {one.state.inode}  {name}"
        for name, one in sorted(record.items())
    ]
    files.replace(store / NAME, HEADER + "".join(f"{line}\n" for line in lines))


def is_unchanged(entry: Entry, store: Path, record: Record) -> bool:
    """Return whether ``entry`` was hashed with the SHA-256 of the lock and has not changed since.

    Raises :class:`StoreError` if the file cannot be examined; a missing file is a changed file.
    """
    hashed = record.get(key(entry))
    if hashed is None or hashed.sha256 != entry.sha256:
        return False
    path = entry.path(store)
    try:
        return state_of(path) == hashed.state
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError.unreadable(path, error) from None


def unverified(entries: Iterable[Entry], store: Path, repository: str, revision: str | None) -> list[str]:
    """Return one line for each reason not to load a model: its files that no hash covers in their present state.

    ``entries`` are those of the lock. ``revision`` is ``None`` for a model without one. Empty if all files of the
    model match the lock, and its folder has no other file. Raises :class:`StoreError` for an unreadable store.
    """
    own = [one for one in entries if one.repository == repository and one.revision == revision]
    name = f"{repository}@{(revision or '?')[:12]}"
    if not own:
        return [f"{name}: models.lock has no file of it; `appliance models fetch` adds it"]
    return _reasons(own, store, own[0].snapshot(store), name)


def unverified_path(entries: Iterable[Entry], store: Path, path: Path) -> list[str]:
    """Return one line for each reason not to load ``path``, a file or a folder of ``store``; else as above.

    The name of one part of a GGUF selects all of its parts.
    """
    own = at_path(entries, store, path)
    if not own:
        return [f"{path}: models.lock has no file of it; `appliance models lock` prints the lock of the store"]
    return _reasons(own, store, path if path.is_dir() else None, own[0].repository)


PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
"""The end of the name of a GGUF in several parts."""


def at_path(entries: Iterable[Entry], store: Path, path: Path) -> list[Entry]:
    """Return the entries whose files are ``path``, parts of the same GGUF, or below the folder ``path``."""
    whole = PART.sub(r"-of-\1.gguf", path.name)
    return [
        one
        for one in entries
        if (file := one.path(store)).is_relative_to(path)
        or (file.parent == path.parent and PART.sub(r"-of-\1.gguf", file.name) == whole)
    ]


def _reasons(own: list[Entry], store: Path, folder: Path | None, name: str) -> list[str]:
    """Return the reasons of the files ``own``, and of files in ``folder`` that are not among them."""
    record = read(store)
    reasons = []
    for entry in own:
        if not entry.path(store).exists():
            reasons.append(f"{name} {entry.file}: is missing in {store}; `appliance models fetch` copies it")
        elif not is_unchanged(entry, store, record):
            reasons.append(f"{name} {entry.file}: not verified in its present state; run `appliance models verify`")
    if folder is None:
        return reasons
    locked = {one.path(store) for one in own}
    foreign = [path for path in sorted(folder.rglob("*")) if not path.is_dir() and path not in locked]
    return reasons + [
        f"{name} {path.relative_to(folder).as_posix()}: is not in models.lock; remove {path}, or lock it"
        for path in foreign
    ]
