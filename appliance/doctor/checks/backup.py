"""The age and the result of backups and restore drill, and the state of the ZFS pool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from appliance.contract.backup import (
    PLAN,
    BackupPlan,
    DrillRecord,
    RunRecord,
    drill_record_file,
    load_plan,
    read_drill_record,
    read_run_record,
    run_record_file,
)
from appliance.doctor.check import NotApplicable, check
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, unknown, warn
from appliance.doctor.host import CannotLookError
from appliance.errors import ConfigError, StoreError

BACKUP_S, DRILL_S = 26 * 3600.0, 8 * 86400.0
"""Ages above which the last complete backup and the last passed drill are too old."""

RUN_FIX = "systemctl start appliance-backup-{name}; journalctl -u appliance-backup-{name}"
DRILL_FIX = "systemctl start appliance-restore-drill; journalctl -u appliance-restore-drill"


def backup_plan(context: CheckContext) -> Path | NotApplicable:
    """Require the file of a plan of backups."""
    file = context.host.path(PLAN)
    return file if file.exists() else NotApplicable("no backup is configured (appliance.backup)")


def _load(file: Path) -> BackupPlan:
    try:
        return load_plan(file)
    except ConfigError as error:
        raise CannotLookError(str(error), "nixos-rebuild switch") from None


def judge_backup(name: str, record: RunRecord, now: float) -> Iterator[Finding]:
    """Judge the last run for the repository ``name``."""
    fix = RUN_FIX.format(name=name)
    for step, reason in record.failed.items():
        yield fail(
            f"the step {step} failed: {reason}",
            meaning="New keys and usage may exist on this machine only.",
            fix=fix,
            subject=name,
        )
    if record.last_success is None:
        yield fail(
            "no backup has succeeded", meaning="Keys and usage exist on this machine only.", fix=fix, subject=name
        )
        return
    age_s = now - record.last_success
    if age_s > BACKUP_S:
        yield fail(
            f"the last complete backup is {age_s / 3600:.0f} h old",
            meaning="Keys and usage since then exist on this machine only.",
            fix=fix,
            subject=name,
        )
    elif not record.failed:
        yield ok(f"a complete backup {max(age_s, 0) / 3600:.0f} h ago", subject=name)


def judge_drill(record: DrillRecord, now: float) -> Finding:
    """Judge the last restore drill."""
    meaning = "It is not proven that the backups restore a working gateway."
    if record.failed is not None:
        return fail(f"the restore drill failed: {record.failed}", meaning=meaning, fix=DRILL_FIX, subject="drill")
    if record.last_success is None:
        return warn("no restore drill has passed yet", meaning=meaning, fix=DRILL_FIX, subject="drill")
    age_s = now - record.last_success
    if age_s > DRILL_S:
        return fail(
            f"the last passed restore drill is {age_s / 86400:.0f} days old",
            meaning=meaning,
            fix=DRILL_FIX,
            subject="drill",
        )
    return ok(f"a restore drill passed {max(age_s, 0) / 86400:.0f} days ago", subject="drill")


def judge_pool(name: str, state: str | None) -> Finding:
    """Judge the ``state`` of a ZFS pool, which is ``None`` if it is not imported."""
    if state == "ONLINE":
        return ok(f"the pool is {state}", subject=name)
    return fail(
        f"the pool is {state}" if state else "the pool is not imported",
        meaning="A disk is missing or fails; with no spare copy left, the next failure loses data.",
        fix=f"zpool status -v {name}; zpool import",
        subject=name,
    )


@check(
    "backup",
    looks="age and failed steps of the last backup to each repository, and the last restore drill",
    means="Fails if a backup is older than 26 h, a step failed, or no drill has passed for 8 days.",
    fix="`journalctl -u 'appliance-backup-*' -u appliance-restore-drill`",
    requires=backup_plan,
    fault_domain="external",
)
def check_backup(context: CheckContext, file: Path) -> Iterator[Finding]:
    """Check the records of backups and drill."""
    plan = _load(file)
    for name in plan.repositories:
        try:
            record = read_run_record(_under_root(context, run_record_file(plan, name)))
        except StoreError as error:
            yield unknown(str(error), fix="run `appliance doctor` as root", subject=name)
            continue
        yield from judge_backup(name, record, context.now)
    if plan.drill is not None:
        try:
            drill = read_drill_record(_under_root(context, drill_record_file(plan)))
        except StoreError as error:
            yield unknown(str(error), fix="run `appliance doctor` as root", subject="drill")
        else:
            yield judge_drill(drill, context.now)
    else:
        yield warn(
            "no restore drill is configured",
            meaning="It is not proven that the backups restore a working gateway.",
            fix="set appliance.backup.drill.enable and its escrowFile",
            subject="drill",
        )


def pool_plan(context: CheckContext) -> str | NotApplicable:
    """Require a ZFS pool in the plan."""
    file = backup_plan(context)
    if isinstance(file, NotApplicable):
        return file
    try:
        name = load_plan(file).pool
    except ConfigError:
        return NotApplicable("the plan of backups is not valid; the check backup reports it")
    return name or NotApplicable("no ZFS pool is configured (appliance.pool)")


@check(
    "pool",
    looks="the state of the ZFS pool of the data",
    means="Fails unless the pool is imported and ONLINE.",
    fix="`zpool status -v`",
    requires=pool_plan,
    fault_domain="external",
)
def check_pool(context: CheckContext, name: str) -> Iterator[Finding]:
    """Check the pool without a child process: `zpool` hangs while a pool is suspended."""
    text = context.host.text(f"/proc/spl/kstat/zfs/{name}/state")
    yield judge_pool(name, text.strip() if text is not None else None)


def _under_root(context: CheckContext, path: Path) -> Path:
    return context.host.path(path)
