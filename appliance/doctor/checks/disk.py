"""Free space of the file systems that fill up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.doctor.check import (
    always,
    check,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, warn
from appliance.doctor.host import CannotLookError

DISK_WARN, DISK_FAIL = 0.10, 0.03
"""Free share of a file system and of its inodes below which usage records and keys are at risk."""


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The file system of one folder; ``free`` and ``free_inodes`` are shares from 0 to 1."""

    folder: str
    total_gib: float
    free: float
    free_inodes: float
    device: int


def read_disk(folder: Path) -> DiskSpace:
    """Read the file system of ``folder``, or of its nearest parent that exists."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        found, device = os.statvfs(existing), existing.stat().st_dev
    except OSError as error:
        raise CannotLookError(f"{existing}: {error.strerror}", "run `appliance doctor` as root") from error
    return DiskSpace(
        folder=str(existing),
        total_gib=found.f_blocks * found.f_frsize / 2**30,
        free=found.f_bavail / found.f_blocks if found.f_blocks else 1.0,
        free_inodes=found.f_favail / found.f_files if found.f_files else 1.0,
        device=device,
    )


def judge_disks(disks: Sequence[DiskSpace]) -> Iterator[Finding]:
    """Judge the free space of each file system, once."""
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
            yield ok(what, subject=disk.folder)
        else:
            level = fail if scarce < DISK_FAIL else warn
            yield level(
                what,
                meaning=("Usage records, new keys, models and systems cannot be stored on a full disk."),
                fix=f"nix-collect-garbage -d; du -xh --max-depth=2 {disk.folder} | sort -h | tail",
                subject=disk.folder,
            )


@check(
    "disk",
    looks="free space and inodes of the root, the gateway's, the assistant's, the models' and the boot file system",
    means="Usage records and new keys cannot be stored on a full disk. Warns below 10 %, fails below 3 %.",
    fix="`nix-collect-garbage -d`",
    requires=always,
    fault_domain="external",
)
def check_disk(context: CheckContext, _: None) -> Iterator[Finding]:
    """Check the file systems that fill up."""
    folders = [context.host.path("/")]
    if context.site is not None:
        folders.append(context.data_folder(context.site))
        if context.site.assistant is not None:
            folders.append(context.place(context.site.assistant.data_dir))
    if context.machine is not None and context.machine.weights is not None:
        folders.append(context.host.path(context.machine.weights.store))
    if context.host.path("/boot").is_dir():
        folders.append(context.host.path("/boot"))
    yield from judge_disks([read_disk(folder) for folder in folders])
