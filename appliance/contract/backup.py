"""The contract of a machine's backups: the plan that NixOS renders, and the records that the backup writes.

``appliance backup`` follows the plan and writes a record after each run. Doctor and metrics read the records.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from appliance.contract.load import parse, read
from appliance.contract.model import Name, Section
from appliance.errors import ConfigError, StoreError
from appliance.system import files

PLAN = Path("/etc/appliance/backup.json")
"""The plan of a machine."""

PlanPath = Annotated[str, StringConstraints(pattern=r"^/")]

STEPS = ("stage", "open", "backup", "check", "prune")
"""The steps of a run, in their order."""


class Repository(Section):
    """One restic repository."""

    url: str | None = Field(default=None, min_length=1, description="Address in restic's form, without a password.")
    url_file: PlanPath | None = Field(default=None, description="File of the address, if it holds a password.")
    password_file: PlanPath = Field(description="File of the repository's password.")
    environment_file: PlanPath | None = Field(default=None, description="File of NAME=value lines for restic.")
    limit_upload_kib: int | None = Field(default=None, gt=0, description="Upload limit in KiB/s.")
    append_only: bool = Field(default=True, description="Whether the server refuses to delete.")
    keep_within: str | None = Field(
        default=None,
        pattern=r"^([0-9]+[ymdh])+$",
        description="Age of the snapshots that each run keeps, such as 90d; absent if another machine prunes.",
    )
    check_days: float = Field(default=7, gt=0, description="Days between two checks of the repository's data.")
    check_parts: int = Field(default=8, ge=1, le=1000, description="Parts of the data; a check reads one of them.")
    open_timeout_s: float = Field(default=120, gt=0, description="Limit of the first contact, in seconds.")
    timeout_s: float = Field(default=43200, gt=0, description="Limit of each later step, in seconds.")


class BackupPlan(Section):
    """The saved paths of this machine, and its repositories."""

    version: Literal[1] = Field(description="Version of this contract.")
    host: Name = Field(description="Name of the machine; snapshots carry it.")
    site: PlanPath | None = Field(
        default=None, description="The site of the gateway whose keys and usage are saved."
    )
    base: PlanPath = Field(default="/", description="Where relative paths of the site begin.")
    state: PlanPath = Field(default="/var/lib/appliance-backup", description="Folder of records and lock.")
    drill_state: PlanPath = Field(
        default="/var/lib/appliance-restore-drill", description="Folder of the drill's record."
    )
    stage: PlanPath = Field(default="/var/lib/appliance-backup-stage", description="Folder of the consistent copy.")
    copies: tuple[PlanPath, ...] = Field(
        default=(), description="Folders whose files are copied through their symbolic links into the stage."
    )
    paths: tuple[PlanPath, ...] = Field(default=(), description="Files and folders that are saved as they are.")
    age_key_file: PlanPath | None = Field(default=None, description="The age key that decrypts the site's secrets.")
    repositories: dict[Name, Repository] = Field(min_length=1, description="Repositories by name.")
    drill: Name | None = Field(default=None, description="The repository that the weekly drill restores.")
    pool: Name | None = Field(default=None, description="The ZFS pool of the data.")


class RunRecord(Section):
    """The last run for one repository; times in seconds since the epoch."""

    started_at: float = 0.0
    ended_at: float | None = None
    """Absent while the run lasts, and after it was killed."""
    failed: dict[str, str] = Field(default_factory=dict)
    """Failed steps with their reasons. A failed check stays until a check passes."""
    last_success: float | None = None
    snapshot: str | None = None
    size_bytes: int | None = None
    last_check: float | None = None
    checked_parts: int = 0
    """Checks that passed: the next one reads part ``checked_parts`` modulo the number of parts."""


class DrillRecord(Section):
    """The last restore drill."""

    started_at: float = 0.0
    ended_at: float | None = None
    failed: str | None = None
    last_success: float | None = None
    snapshot: str | None = None


def load_plan(path: Path) -> BackupPlan:
    """Return the plan in ``path``.

    Raises :class:`ConfigError` with one line per error: file, key, error, fix.
    """
    table = parse(path, read(path))
    try:
        plan = BackupPlan.model_validate_json(json.dumps(table))
    except ValidationError as error:
        raise ConfigError(
            "\n".join(
                f"{path}: {'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg'].lower()}; "
                "appliance.backup of NixOS renders this file, and docs/operating.md describes it"
                for one in error.errors(include_url=False)
            )
        ) from None
    for name, repository in plan.repositories.items():
        if (repository.url is None) == (repository.url_file is None):
            raise ConfigError(f"{path}: repositories.{name}: set either url or url_file")
        if repository.append_only and repository.keep_within is not None:
            raise ConfigError(
                f"{path}: repositories.{name}: keep_within deletes, which an append-only server refuses; "
                "remove it and prune from another machine with `appliance backup prune`"
            )
    if plan.drill is not None and plan.drill not in plan.repositories:
        raise ConfigError(f"{path}: drill: {plan.drill} is not one of the repositories")
    return plan


def run_record_file(plan: BackupPlan, repository: str) -> Path:
    """Return the file of the run record of ``repository``."""
    return Path(plan.state) / f"{repository}.record.json"


def drill_record_file(plan: BackupPlan) -> Path:
    """Return the file of the drill's record."""
    return Path(plan.drill_state) / "drill.record.json"


def read_run_record(path: Path) -> RunRecord:
    """Return the record in ``path``, an empty one if it is missing; raises :class:`StoreError`."""
    content = files.read(path)
    if content is None:
        return RunRecord()
    try:
        return RunRecord.model_validate_json(content)
    except ValidationError:
        raise _damaged(path) from None


def read_drill_record(path: Path) -> DrillRecord:
    """Return the record in ``path``, an empty one if it is missing; raises :class:`StoreError`."""
    content = files.read(path)
    if content is None:
        return DrillRecord()
    try:
        return DrillRecord.model_validate_json(content)
    except ValidationError:
        raise _damaged(path) from None


def write_record(path: Path, record: RunRecord | DrillRecord) -> None:
    """Write ``record`` as a whole; raises :class:`StoreError`."""
    files.make_folder(path.parent)
    files.replace(path, record.model_dump_json(indent=1) + "\n")


def _damaged(path: Path) -> StoreError:
    return StoreError(f"{path} is not a record of a backup; delete it, and the next run writes it anew")
