"""Disks, model files and the gateway's database: room, wholeness, readability. Nothing is written."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from appliance.contract.model import Model
from appliance.doctor.finding import Verdict, fail, ok, unknown, warn
from appliance.doctor.host import CannotLookError, HostReader
from appliance.errors import ConfigError
from appliance.models import lock
from appliance.store.database import FILE
from appliance.store.schema import REVISION, REVISIONS

DISK_WARN, DISK_FAIL = 0.10, 0.03
"""Free share of a disk below which usage rows and keys are in danger; the same for inodes."""

QUICK_CHECK_S = 20.0


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """A file system as seen from one folder. Shares of 1."""

    folder: str
    total_gib: float
    free: float
    free_inodes: float
    device: int


def read_disk(folder: Path) -> DiskSpace:
    """The file system of ``folder``, or of its nearest parent that exists."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        found, device = os.statvfs(existing), existing.stat().st_dev
    except OSError as error:
        raise CannotLookError(f"{existing}: {error.strerror}", "run `appliance doctor` as root") from error
    return DiskSpace(
        str(existing),
        found.f_blocks * found.f_frsize / 2**30,
        found.f_bavail / found.f_blocks if found.f_blocks else 1.0,
        found.f_favail / found.f_files if found.f_files else 1.0,
        device,
    )


def judge_disks(disks: Sequence[DiskSpace]) -> Iterator[Verdict]:
    """Room on each file system, once."""
    seen: set[int] = set()
    for disk in disks:
        if disk.device in seen:
            continue
        seen.add(disk.device)
        scarce = min(disk.free, disk.free_inodes)
        what = f"{disk.free:.0%} of {disk.total_gib:.0f} GiB free"
        if disk.free_inodes < DISK_WARN:
            what += f", {disk.free_inodes:.0%} of the inodes"
        if scarce >= DISK_WARN:
            yield ok(what, disk.folder)
        else:
            level = fail if scarce < DISK_FAIL else warn
            yield level(
                what,
                "Usage rows and new keys cannot be kept once it is full; new models and systems do not arrive.",
                f"nix-collect-garbage -d; du -xh --max-depth=2 {disk.folder} | sort -h | tail",
                disk.folder,
            )


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """The lock held against the store."""

    files: int
    faults: tuple[str, ...]
    hashed: bool
    boot_check: str
    lock_error: str = ""


def read_weights(host: HostReader, store: str, lock_file: str, boot_check: str, *, hashes: bool) -> WeightFacts:
    """Sizes of every file of the lock; their SHA-256 too with ``hashes``, which takes minutes per 100 GiB.

    ``boot_check`` is the state of the unit that does the same at boot.
    """
    try:
        entries = lock.read(host.path(lock_file))
    except ConfigError as error:
        return WeightFacts(0, (), hashes, boot_check, str(error))
    where = host.path(store)
    if hashes:
        faults = tuple(lock.verify(entries, where))
    else:
        faults = tuple(fault for entry in entries if (fault := _size_fault(entry, where)))
    return WeightFacts(len(entries), faults, hashes, boot_check)


def _size_fault(entry: lock.Entry, store: Path) -> str | None:
    name = f"{entry.repository} {entry.file}"
    try:
        size = entry.path(store).stat().st_size
    except OSError as error:
        return f"{name}: {error.strerror}"
    return None if size == entry.size else f"{name}: {size} bytes, the lock says {entry.size}"


def judge_weights(facts: WeightFacts) -> Verdict:
    """Every file of models.lock is whole."""
    if facts.lock_error:
        return fail(
            facts.lock_error, "Nobody knows whether the weights are the right ones.", "nixos-rebuild switch", "lock"
        )
    if facts.faults:
        more = f"; and {len(facts.faults) - 1} more" if len(facts.faults) > 1 else ""
        return fail(
            f"{facts.faults[0]}{more}",
            "An engine refuses to start, or answers nonsense.",
            "fetch the model again; appliance models verify --lock /etc/appliance/models.lock --store …",
            "lock",
            "weights",
        )
    if facts.boot_check == "failed":
        return fail(
            "the check of the hashes at boot failed",
            "Engines do not start while it stands.",
            "journalctl -u appliance-models-verify; systemctl restart appliance-models-verify",
            "lock",
            "weights",
        )
    if facts.hashed:
        return ok(f"{facts.files} files, every SHA-256 is the lock's", "lock")
    if facts.boot_check == "active":
        return ok(f"{facts.files} files of the right size; hashes held at boot", "lock")
    return warn(
        f"{facts.files} files of the right size; hashes were not checked since boot",
        "Bit rot and half-written files of the right size go unnoticed.",
        "appliance doctor --only models --hashes",
        "lock",
    )


def judge_folders(host: HostReader, models: dict[str, Model], base: Path) -> Iterator[Verdict]:
    """Models that are folders are there and hold a model."""
    for name, model in models.items():
        if not model.is_folder:
            continue
        folder = Path(model.source).expanduser()
        path = host.path(folder) if folder.is_absolute() else base / folder
        subject = f"model {name}"
        if not path.is_dir():
            yield fail(
                f"{model.source} is not there",
                "Its engines cannot start.",
                f"put the model there, or correct models.{name}.source",
                subject,
                "weights",
            )
        elif not (path / "config.json").exists() and not any(path.glob("*.gguf")):
            yield fail(
                f"{model.source} holds neither config.json nor a .gguf",
                "Its engines cannot start.",
                f"fetch the model again, or correct models.{name}.source",
                subject,
                "weights",
            )
        else:
            yield ok(model.source, subject)


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
    """Read the database without leaving a trace: a file that root makes beside it would stop the gateway."""
    path = folder / FILE
    try:
        if not path.exists():
            return DatabaseFacts(str(path), exists=False)
        # With its shared memory there a reader makes no file; without it nobody has the database open.
        mode = "mode=ro" if path.with_name(f"{FILE}-shm").exists() else "mode=ro&immutable=1"
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=5)) as db:
            deadline = time.monotonic() + QUICK_CHECK_S
            db.set_progress_handler(lambda: int(time.monotonic() > deadline), 100_000)
            integrity = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
            revision = db.execute("SELECT version_num FROM alembic_version").fetchone()
            live = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)"
            keys = db.execute(f"SELECT count(*) FROM keys WHERE {live}", (now,)).fetchone()[0]  # noqa: S608
        return DatabaseFacts(str(path), True, "", integrity, str(revision[0]) if revision else None, int(keys))
    except PermissionError as error:
        raise CannotLookError(f"{path}: {error.strerror}", "run `appliance doctor` as root") from error
    except (OSError, sqlite3.Error) as error:
        return DatabaseFacts(str(path), exists=True, error=str(error))


def judge_database(facts: DatabaseFacts) -> Verdict:
    """Keys and usage: readable, whole, of this version, and somebody has a key."""
    if not facts.exists:
        return warn(
            f"{facts.file} is not there yet",
            "The gateway makes it at its first start; until then nobody has a key.",
            "systemctl start appliance-gateway; appliance-keys create NAME",
        )
    if "interrupted" in facts.error:
        return unknown(
            f"{facts.file} is too large to check within {QUICK_CHECK_S:g} s",
            f"sqlite3 {facts.file} 'PRAGMA quick_check'",
        )
    broken = facts.error or ("" if facts.integrity == "ok" else facts.integrity.splitlines()[0])
    if broken:
        return fail(
            f"{facts.file}: {broken}",
            "It is damaged or no database: the gateway cannot know its users.",
            "systemctl stop appliance-gateway; restore the newest backup of it",
            cause="database",
        )
    if facts.revision not in REVISIONS:
        return fail(
            f"its schema is {facts.revision}, this version knows {REVISION}",
            "A newer version made it: this one refuses to start.",
            "switch to the newer system, or restore the backup from before",
            cause="database",
        )
    if facts.keys == 0:
        return warn("whole, and nobody has a key", "Every request gets 401.", "appliance-keys create NAME")
    return ok(f"whole; {facts.keys} live keys")
