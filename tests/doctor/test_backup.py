"""The checks of backups, restore drill and pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.contract.backup import DrillRecord, RunRecord, write_record
from appliance.doctor.checks.backup import judge_backup, judge_drill, judge_pool
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import DoctorReport
from appliance.doctor.host import HostReader
from appliance.doctor.runner import examine

NOW = 1_800_000_000.0
HOUR, DAY = 3600.0, 86400.0


@pytest.mark.parametrize(
    ("record", "levels"),
    [
        (RunRecord(last_success=NOW - HOUR), ["ok"]),
        (RunRecord(last_success=NOW - 25 * HOUR), ["ok"]),
        (RunRecord(last_success=NOW - 27 * HOUR), ["fail"]),
        (RunRecord(last_success=NOW - HOUR, failed={"check": "damaged"}), ["fail"]),
        (RunRecord(last_success=NOW - 27 * HOUR, failed={"open": "server down"}), ["fail", "fail"]),
        (RunRecord(), ["fail"]),
    ],
)
def test_a_backup_is_judged_by_age_and_failed_steps(record: RunRecord, levels: list[str]) -> None:
    assert [finding.level for finding in judge_backup("vps", record, NOW)] == levels


@pytest.mark.parametrize(
    ("record", "level"),
    [
        (DrillRecord(last_success=NOW - 7 * DAY), "ok"),
        (DrillRecord(last_success=NOW - 9 * DAY), "fail"),
        (DrillRecord(last_success=NOW - DAY, failed="the sums differ"), "fail"),
        (DrillRecord(), "warn"),
    ],
)
def test_a_drill_is_judged_by_age_and_result(record: DrillRecord, level: str) -> None:
    assert judge_drill(record, NOW).level == level


@pytest.mark.parametrize(("state", "level"), [("ONLINE", "ok"), ("DEGRADED", "fail"), (None, "fail")])
def test_a_pool_is_judged_by_its_state(state: str | None, level: str) -> None:
    assert judge_pool("tank", state).level == level


def look(root: Path, check: str) -> DoctorReport:
    context = CheckContext(HostReader(root), site=None, machine=None, base=root, now=NOW)
    return examine(context, [check])


def a_host(root: Path, **more: Any) -> None:
    (root / "etc/appliance").mkdir(parents=True)
    plan = {
        "version": 1,
        "host": "gpu",
        "repositories": {"vps": {"url": "/nowhere", "password_file": "/nowhere"}},
        "drill": "vps",
        "pool": "tank",
    }
    (root / "etc/appliance/backup.json").write_text(json.dumps(plan | more))


def test_the_records_of_a_host_are_read(tmp_path: Path) -> None:
    a_host(tmp_path)
    write_record(tmp_path / "var/lib/appliance-backup/vps.record.json", RunRecord(last_success=NOW - HOUR))
    write_record(tmp_path / "var/lib/appliance-restore-drill/drill.record.json", DrillRecord(last_success=NOW))
    assert [(one.subject, one.level) for one in look(tmp_path, "backup").results] == [
        ("vps", "ok"),
        ("drill", "ok"),
    ]
    state = tmp_path / "proc/spl/kstat/zfs/tank/state"
    assert [one.level for one in look(tmp_path, "pool").results] == ["fail"]
    state.parent.mkdir(parents=True)
    state.write_text("ONLINE\n")
    assert [one.level for one in look(tmp_path, "pool").results] == ["ok"]


def test_a_host_without_records_has_no_backup(tmp_path: Path) -> None:
    a_host(tmp_path, drill=None)
    assert [(one.subject, one.level) for one in look(tmp_path, "backup").results] == [
        ("vps", "fail"),
        ("drill", "warn"),
    ]


def test_a_damaged_record_is_unknown(tmp_path: Path) -> None:
    a_host(tmp_path, drill=None)
    record = tmp_path / "var/lib/appliance-backup/vps.record.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    assert look(tmp_path, "backup").results[0].level == "unknown"


def test_a_host_without_a_plan_is_skipped(tmp_path: Path) -> None:
    context = CheckContext(HostReader(tmp_path), site=None, machine=None, base=tmp_path, now=NOW)
    skipped = {one.name for one in examine(context).skipped}
    assert {"backup", "pool"} <= skipped
