"""``models.lock``: every weight file by repository, revision, name, size and SHA-256.

The store is a model hub's cache folder (``HF_HOME``): ``hub/models--ORG--NAME/snapshots/REVISION/FILE``. Files that
an operator has put into it outside of ``hub/`` are locked as those of the repository :data:`LOCAL`. An engine
starts only if the files of its model were verified, see :mod:`.verification`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ConfigError, StoreError
from appliance.system import files, text_file

LINE = re.compile(
    r"(?P<sha256>[0-9a-f]{64})  (?P<size>\d{1,15})  "
    r"(?P<repository>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)@(?P<revision>[0-9a-f]{40})  (?P<file>\S+)"
)
LOCAL = "local/files"
"""The repository of a lock for files of the store that are in no repository of the hub."""

LOCAL_REVISION = "0" * 40

WEIGHTS = (".gguf", ".safetensors", ".bin")
"""Ends of the names of weights. Other files are locked only if their folder has weights."""

NOT_WEIGHTS = frozenset({"hub", "partial", "verified", "warmed", "xet", "lost+found", "token", "stored_tokens"})
"""Names in a store that hold no weights outside of the hub's folders: those of the hub's client, and our own."""

HEADER = "# sha256  size in bytes  repository@revision  file; written by `appliance models lock`\n"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of one model."""

    repository: str
    revision: str
    file: str
    size: int
    sha256: str

    @property
    def is_local(self) -> bool:
        """Whether the file is outside of the hub's folders."""
        return self.repository == LOCAL

    def snapshot(self, store: Path) -> Path:
        """Return the folder of all files of the model at its revision in ``store``."""
        if self.is_local:
            return store
        folder = f"models--{self.repository.replace('/', '--')}"
        return store / "hub" / folder / "snapshots" / self.revision

    def path(self, store: Path) -> Path:
        """Return the path of the file in ``store``."""
        return self.snapshot(store) / self.file

    def __str__(self) -> str:
        return f"{self.sha256}  {self.size}  {self.repository}@{self.revision}  {self.file}"


def read(lock: Path) -> list[Entry]:
    """Return the entries of ``lock``; raises :class:`ConfigError` that names the first invalid line."""
    text = text_file.read(
        lock, missing="cannot be read (No such file or directory); write it with `appliance models lock`"
    )
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if match is None or ".." in Path(match["file"]).parts or match["file"].startswith("/"):
            raise ConfigError(
                f"{lock}: line {number} is not `sha256  size  repository@revision  file`; write it anew"
            )
        part = match.groupdict()
        entries.append(
            Entry(
                repository=part["repository"],
                revision=part["revision"],
                file=part["file"],
                size=int(part["size"]),
                sha256=part["sha256"],
            )
        )
    if not entries:
        raise ConfigError(
            f"{lock}: names no file, so it verifies nothing; write it anew with `appliance models lock`"
        )
    return entries


def write(lock: Path, entries: Iterable[Entry]) -> None:
    """Replace ``lock`` with ``entries`` in a stable order; raises :class:`StoreError` if it cannot be written."""
    ordered = sorted(entries, key=lambda entry: (entry.repository, entry.revision, entry.file))
    files.replace(lock, HEADER + "".join(f"{entry}\n" for entry in ordered))


def make(store: Path) -> list[Entry]:
    """Return the entries of all files in ``store``, in a stable order; raises :class:`StoreError` if none."""
    entries = []
    for path in sorted((store / "hub").glob("models--*--*/snapshots/*/**/*")):
        if path.is_file():
            model, _, revision, *file = path.relative_to(store / "hub").parts
            repository = "/".join(model.removeprefix("models--").split("--", 1))
            entries.append(
                Entry(
                    repository=repository,
                    revision=revision,
                    file="/".join(file),
                    size=path.stat().st_size,
                    sha256=digest(path),
                )
            )
    entries += _local_entries(store)
    if not entries:
        raise StoreError(f"{store}: holds no model; fetch one with `appliance models fetch`")
    return entries


def _local_entries(store: Path) -> list[Entry]:
    """Return the weights of ``store`` outside of the hub's folders, with the other files of their folders."""
    found = {}
    for top in sorted(store.glob("*")):
        if top.name not in NOT_WEIGHTS:
            for path in [top, *sorted(top.rglob("*"))]:
                file = path.relative_to(store)
                if path.is_file() and not any(part.startswith(".") for part in file.parts):
                    found[path] = file
    folders = {path.parent for path in found if path.suffix in WEIGHTS} - {store}
    entries = []
    for path, file in found.items():
        if path.suffix not in WEIGHTS and folders.isdisjoint(path.parents):
            continue
        if re.search(r"\s", str(file)):
            raise StoreError(f"{path}: its name has a blank, which models.lock cannot hold; rename it")
        entries.append(Entry(LOCAL, LOCAL_REVISION, file.as_posix(), path.stat().st_size, digest(path)))
    return entries


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
