"""The models in a store: files, size, and how much of them is verified."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import StoreError
from appliance.models import verified
from appliance.models.lock import Entry
from appliance.models.transfer import PARTIAL


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One revision of one repository on disk. ``unverified`` and ``missing`` count files; ``size`` is in bytes."""

    repository: str
    revision: str
    files: int
    size: int
    unverified: int
    missing: int
    locked: bool

    @property
    def state(self) -> str:
        """Return what an engine would find, in a word or two."""
        if self.missing:
            return f"{self.missing} files missing"
        if self.unverified:
            return f"{self.unverified} files not verified"
        return "verified"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The folder of one revision of one repository."""

    repository: str
    revision: str
    folder: Path

    def paths(self) -> list[Path]:
        """Return its files and links, in a stable order."""
        return sorted(path for path in self.folder.rglob("*") if path.is_symlink() or path.is_file())

    def name_of(self, path: Path) -> str:
        """Return the name of a file of :meth:`paths` as a lock has it."""
        return path.relative_to(self.folder).as_posix()

    def key_of(self, path: Path) -> str:
        """Return the name of a file of :meth:`paths` in the record of verified files."""
        return verified.file_key(self.repository, self.revision, self.name_of(path))


def snapshots(store: Path) -> list[Snapshot]:
    """Return the snapshots in ``store``, in a stable order; raises :class:`StoreError` if it cannot be read."""
    found = []
    try:
        for folder in sorted((store / "hub").glob("models--*--*/snapshots/*")):
            if folder.is_dir():
                organisation, _, name = folder.parent.parent.name.removeprefix("models--").partition("--")
                found.append(Snapshot(f"{organisation}/{name}", folder.name, folder))
    except OSError as error:
        raise StoreError.unreadable(store, error) from None
    return found


def stored_models(store: Path, entries: Sequence[Entry]) -> list[StoredModel]:
    """Return the models in ``store`` and those that ``entries`` of a lock name."""
    record = verified.read(store)
    locked: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        locked.setdefault((entry.repository, entry.revision), []).append(entry)
    on_disk = {(one.repository, one.revision): one for one in snapshots(store)}
    return [
        _model(store, record, name, on_disk.get(name), locked.get(name, []))
        for name in sorted(on_disk.keys() | locked.keys())
    ]


def _model(
    store: Path, record: verified.Record, name: tuple[str, str], found: Snapshot | None, locked: list[Entry]
) -> StoredModel:
    files = {path: found.name_of(path) for path in found.paths()} if found is not None else {}
    files |= {path: one.file for one in locked if one.is_local and (path := one.path(store)).exists()}
    pins = {one.file: one.sha256 for one in locked}
    size = unverified = 0
    for path, file in files.items():
        hashed = record.get(verified.file_key(*name, file))
        try:
            state = verified.state_of(path)
        except OSError:
            # A link to a blob that is missing.
            unverified += 1
            continue
        size += state.size
        if hashed is None or hashed.state != state or (locked and hashed.sha256 != pins.get(file)):
            unverified += 1
    missing = sum(not one.path(store).exists() for one in locked)
    return StoredModel(*name, len(files), size, unverified, missing, locked=bool(locked))


def partial_bytes(store: Path) -> int:
    """Return the bytes of incomplete files in ``store``."""
    return sum(path.stat().st_size for path in partial_files(store))


def partial_files(store: Path) -> Iterable[Path]:
    """Return the incomplete files in ``store``."""
    return sorted(path for path in (store / PARTIAL).glob("*") if len(path.name) == 64 and path.is_file())
