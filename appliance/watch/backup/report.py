"""The report on all backups, the drill and the pool: metrics, and one notice each way for every state that is bad.

A unit of its own runs it every ten minutes and after each backup. So metrics exist after a reboot, a killed backup
is reported, and only one process writes the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from appliance.contract.backup import (
    STEPS,
    BackupPlan,
    DrillRecord,
    RunRecord,
    drill_record_file,
    read_drill_record,
    read_run_record,
    run_record_file,
)
from appliance.errors import StoreError
from appliance.notices.notice import Notice
from appliance.notices.outbox import Outbox
from appliance.notices.pending import PendingNotices
from appliance.system import files
from appliance.system.metrics_file import write_metrics
from appliance.watch.backup.pool import HEALTHY, read_pool

OVERDUE_S, DRILL_OVERDUE_S = 26 * 3600.0, 8 * 86400.0
"""Ages of the last success above which a backup and the drill are reported."""


@dataclass(frozen=True, slots=True)
class BackupState:
    """All records at one moment. ``since`` is the time of the first report, in seconds since the epoch.

    ``pool_state`` is ``None`` if the plan has no pool, and ``drill`` if it has no drill.
    """

    runs: Mapping[str, RunRecord]
    drill: DrillRecord | None
    pool: str | None
    pool_state: str | None
    since: float


def problems(state: BackupState, now: float) -> dict[tuple[str, str], str]:
    """Return the text of each bad state by kind and subject of its notice.

    A machine without any success counts as overdue from its first report on.

    Example::

        problems(BackupState({"vps": RunRecord(failed={"open": "wrong password"})}, None, None, None, 0), 60)
        # {("backup-failed", "vps"): "The backup to vps failed: open: wrong password. …"}
    """
    found: dict[tuple[str, str], str] = {}
    for name, record in state.runs.items():
        fix = f"Fix: appliance doctor --only backup; journalctl -u appliance-backup-{name}"
        last = record.last_success or state.since
        if record.failed:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in sorted(record.failed.items()))
            found["backup-failed", name] = f"The backup to {name} failed: {reasons}. {fix}"
        elif now - last > OVERDUE_S:
            hours = (now - last) / 3600
            found["backup-failed", name] = f"No backup to {name} has succeeded for {hours:.0f} h. {fix}"
    if state.drill is not None:
        fix = "Fix: journalctl -u appliance-restore-drill"
        last = state.drill.last_success or state.since
        if state.drill.failed is not None:
            found["drill-failed", "restore"] = f"The restore drill failed: {state.drill.failed}. {fix}"
        elif now - last > DRILL_OVERDUE_S:
            found["drill-failed", "restore"] = f"No drill has passed for {(now - last) / 86400:.0f} days. {fix}"
    if state.pool is not None and state.pool_state != HEALTHY:
        found["pool-unhealthy", state.pool] = (
            f"The pool {state.pool} is {state.pool_state}. Fix: zpool status -v {state.pool}"
        )
    return found


def changes(before: frozenset[tuple[str, str]], found: Mapping[tuple[str, str], str], now: float) -> list[Notice]:
    """Return the notices of the states that began or ended since ``before``."""
    began = [
        Notice(kind=kind, subject=subject, text=text, at=now)
        for (kind, subject), text in found.items()
        if (kind, subject) not in before
    ]
    ended = [
        Notice(kind=kind, subject=subject, text=f"{_WORDS[kind]} {subject}: in order again.", at=now, ended=True)
        for kind, subject in sorted(before - found.keys())
        if kind in _WORDS
    ]
    return began + ended


_WORDS = {"backup-failed": "Backup to", "drill-failed": "Drill of", "pool-unhealthy": "Pool"}


def registry(state: BackupState) -> CollectorRegistry:
    """Return the metrics of ``state``."""
    metrics = CollectorRegistry()

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"appliance_backup_{name}", text, labels, registry=metrics)

    success = gauge("last_success_timestamp_seconds", "End of the last complete backup", "repository")
    tried = gauge("last_try_timestamp_seconds", "Start of the last backup", "repository")
    failed = gauge("failed", "1 if this step of the last backup failed", "repository", "step")
    size = gauge("size_bytes", "Data in the repository", "repository")
    for name, record in state.runs.items():
        success.labels(name).set(record.last_success or 0)
        tried.labels(name).set(record.started_at)
        for step in STEPS:
            failed.labels(name, step).set(int(step in record.failed))
        if record.size_bytes is not None:
            size.labels(name).set(record.size_bytes)
    if state.drill is not None:
        gauge("drill_last_success_timestamp_seconds", "End of the last passed drill").set(
            state.drill.last_success or 0
        )
        gauge("drill_failed", "1 if the last drill failed").set(int(state.drill.failed is not None))
    if state.pool is not None:
        healthy = Gauge("appliance_pool_healthy", "1 if the pool is ONLINE", ("pool",), registry=metrics)
        healthy.labels(state.pool).set(int(state.pool_state == HEALTHY))
    return metrics


def read_state(plan: BackupPlan, *, since: float, root: Path = Path("/")) -> BackupState:
    """Return all records of ``plan``; a record that cannot be read counts as a failed backup."""
    runs = {}
    for name in plan.repositories:
        try:
            runs[name] = read_run_record(run_record_file(plan, name))
        except StoreError as error:
            runs[name] = RunRecord(failed={"backup": str(error)})
    drill: DrillRecord | None = None
    if plan.drill is not None:
        try:
            drill = read_drill_record(drill_record_file(plan))
        except StoreError as error:
            drill = DrillRecord(failed=str(error))
    pool_state = read_pool(plan.pool, root) if plan.pool is not None else None
    return BackupState(runs, drill, plan.pool, pool_state, since)


def report(
    plan: BackupPlan,
    *,
    memory: Path,
    metrics: Path | None,
    outbox: Outbox,
    now: float,
    root: Path = Path("/"),
    write: Callable[[str], None] = print,
) -> dict[tuple[str, str], str]:
    """Write the metrics, put the notices of changes into the outbox, and return the bad states.

    ``memory`` is the file of the reported states. It changes only after all notices are on disk, so that none is
    lost. Raises :class:`StoreError` if a file cannot be written.
    """
    since, before = _remembered(memory, now)
    state = read_state(plan, since=since, root=root)
    found = problems(state, now)
    notices = changes(before, found, now)
    for notice in notices:
        write(notice.text)
    pending = PendingNotices(outbox)
    for notice in notices:
        pending.put(notice)
    if metrics is not None:
        write_metrics(metrics, registry(state))
    if pending.flush():
        files.make_folder(memory.parent)
        files.replace(memory, json.dumps({"since": since, "reported": sorted(map(list, found))}) + "\n")
    return found


def _remembered(file: Path, now: float) -> tuple[float, frozenset[tuple[str, str]]]:
    try:
        table = json.loads(files.read(file) or b"{}")
        since = min(float(table.get("since", now)), now)
        return since, frozenset((str(kind), str(subject)) for kind, subject in table.get("reported", []))
    except (ValueError, TypeError, AttributeError):
        return now, frozenset()
