"""``models.lock``: every weight file by repository, revision, name, size and SHA-256.

The store is a model hub's cache folder (``HF_HOME``): ``hub/models--ORG--NAME/snapshots/REVISION/FILE``. An
engine's unit starts only after :func:`verify` found every file of the lock whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ConfigError, StoreError
from appliance.system import text_file

LINE = re.compile(
    r"(?P<sha256>[0-9a-f]{64})  (?P<size>\d{1,15})  "
    r"(?P<repository>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)@(?P<revision>[0-9a-f]{40})  (?P<file>\S+)"
)
HEADER = "# sha256  size in bytes  repository@revision  file; written by `appliance models lock`\n"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of one model."""

    repository: str
    revision: str
    file: str
    size: int
    sha256: str

    def path(self, store: Path) -> Path:
        """Where the file lies in ``store``."""
        folder = f"models--{self.repository.replace('/', '--')}"
        return store / "hub" / folder / "snapshots" / self.revision / self.file

    def __str__(self) -> str:
        return f"{self.sha256}  {self.size}  {self.repository}@{self.revision}  {self.file}"


def read(lock: Path) -> list[Entry]:
    """The entries of ``lock``; raises :class:`ConfigError` that names the first line that is none."""
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
        entries.append(Entry(part["repository"], part["revision"], part["file"], int(part["size"]), part["sha256"]))
    if not entries:
        raise ConfigError(f"{lock}: names no file; a lock that checks nothing proves nothing")
    return entries


def make(store: Path) -> list[Entry]:
    """The entries of everything that lies in ``store`` now, in a stable order."""
    entries = []
    for path in sorted((store / "hub").glob("models--*--*/snapshots/*/**/*")):
        if path.is_file():
            model, _, revision, *file = path.relative_to(store / "hub").parts
            repository = "/".join(model.removeprefix("models--").split("--", 1))
            entries.append(Entry(repository, revision, "/".join(file), path.stat().st_size, digest(path)))
    if not entries:
        raise StoreError(f"{store}: holds no model; fetch one with HF_HOME={store}")
    return entries


def verify(entries: list[Entry], store: Path) -> Iterator[str]:
    """One line for each file of ``entries`` that is not what the lock says. Sizes first: digests take long."""
    for entry in sorted(entries, key=lambda entry: entry.size):
        path = entry.path(store)
        name = f"{entry.repository}@{entry.revision[:12]} {entry.file}"
        try:
            size = path.stat().st_size
            if size != entry.size:
                yield f"{name}: {size} bytes, the lock says {entry.size}; fetch it again"
            elif digest(path) != entry.sha256:
                yield f"{name}: its SHA-256 is not the lock's; remove it and fetch it again"
        except FileNotFoundError:
            yield f"{name}: is missing in {store}; fetch it"
        except OSError as error:
            yield f"{name}: cannot be read ({error.strerror}); check the disk and the permissions of {store}"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
