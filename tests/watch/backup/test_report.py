"""The report: which states are bad, one notice each way, and the metrics."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.contract.backup import (
    BackupPlan,
    DrillRecord,
    RunRecord,
    drill_record_file,
    load_plan,
    run_record_file,
    write_record,
)
from appliance.errors import ConfigError
from appliance.notices.notice import PAGING_KINDS, Notice
from appliance.notices.outbox import Outbox
from appliance.watch.backup.report import (
    DRILL_OVERDUE_S,
    OVERDUE_S,
    BackupState,
    changes,
    problems,
    report,
)
from tests.smalldisk import SmallDisk

NOW = 1_800_000_000.0
GOOD = RunRecord(started_at=NOW - 60, ended_at=NOW - 30, last_success=NOW - 30)


def a_plan(folder: Path, **more: object) -> BackupPlan:
    table = {
        "version": 1,
        "host": "gpu",
        "state": str(folder / "state"),
        "drill_state": str(folder / "drill"),
        "drill": "vps",
        "pool": "tank",
        "repositories": {"vps": {"url": "/nowhere", "password_file": "/nowhere"}},
    }
    file = folder / "backup.json"
    file.write_text(json.dumps(table | more))
    return load_plan(file)


def bad(
    run: RunRecord = GOOD, drill: DrillRecord | None = None, pool: str = "ONLINE"
) -> dict[tuple[str, str], str]:
    return problems(BackupState({"vps": run}, drill, "tank", pool, NOW), NOW)


def test_a_good_state_has_no_problem() -> None:
    assert bad(drill=DrillRecord(last_success=NOW - 60)) == {}


def test_a_failed_step_is_a_problem_with_its_reason_and_a_fix() -> None:
    text = bad(GOOD.model_copy(update={"failed": {"check": "damaged"}}))["backup-failed", "vps"]
    assert "check: damaged" in text
    assert "appliance doctor --only backup" in text


@pytest.mark.parametrize(("age_s", "count"), [(OVERDUE_S - 1, 0), (OVERDUE_S + 1, 1)])
def test_a_backup_is_overdue_after_26_hours(age_s: float, count: int) -> None:
    assert len(bad(GOOD.model_copy(update={"last_success": NOW - age_s}))) == count


@pytest.mark.parametrize(("age_s", "count"), [(DRILL_OVERDUE_S - 1, 0), (DRILL_OVERDUE_S + 1, 1)])
def test_a_drill_is_overdue_after_eight_days(age_s: float, count: int) -> None:
    assert len(bad(drill=DrillRecord(last_success=NOW - age_s))) == count


def test_a_new_machine_has_a_day_for_its_first_backup() -> None:
    state = BackupState({"vps": RunRecord()}, DrillRecord(), None, None, NOW)
    assert problems(state, NOW + 3600) == {}
    assert ("backup-failed", "vps") in problems(state, NOW + OVERDUE_S + 1)


@pytest.mark.parametrize("pool", ["DEGRADED", "SUSPENDED", "ABSENT"])
def test_a_pool_that_is_not_online_is_a_problem(pool: str) -> None:
    assert f"tank is {pool}" in bad(pool=pool)["pool-unhealthy", "tank"]


SUBJECTS = st.frozensets(
    st.tuples(st.sampled_from(["backup-failed", "drill-failed", "pool-unhealthy"]), st.sampled_from("abc"))
)


@given(st.lists(SUBJECTS))
def test_each_state_is_reported_once_each_way(history: list[frozenset[tuple[str, str]]]) -> None:
    """A reader of the notices always has exactly the states that are bad now."""
    before: frozenset[tuple[str, str]] = frozenset()
    reader: set[tuple[str, str]] = set()
    for found in history:
        for notice in changes(before, dict.fromkeys(found, "text"), NOW):
            subject = (notice.kind, notice.subject)
            assert notice.ended is (subject in reader)
            reader.symmetric_difference_update({subject})
        assert reader == found
        before = found


def test_the_kinds_wait_for_the_digest() -> None:
    found = bad(GOOD.model_copy(update={"failed": {"open": "x"}}), DrillRecord(failed="x"), "FAULTED")
    assert len(found) == 3
    assert not {kind for kind, _ in found} & PAGING_KINDS


def notices(folder: Path) -> list[Notice]:
    return [msgspec.json.decode(file.read_bytes(), type=Notice) for file in Outbox(folder).waiting()]


def a_pool(root: Path, state: str) -> None:
    folder = root / "proc/spl/kstat/zfs/tank"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").write_text(f"{state}\n")


def write_report(plan: BackupPlan, folder: Path, now: float = NOW) -> None:
    report(
        plan,
        memory=folder / "reported.json",
        metrics=folder / "backup.prom",
        outbox=Outbox(folder / "outbox"),
        now=now,
        root=folder,
        write=lambda _: None,
    )


def test_the_report_writes_metrics_and_one_notice_each_way(tmp_path: Path) -> None:
    plan = a_plan(tmp_path)
    a_pool(tmp_path, "ONLINE")
    file = run_record_file(plan, "vps")
    write_record(file, GOOD.model_copy(update={"failed": {"open": "server down"}, "size_bytes": 42}))
    write_record(drill_record_file(plan), DrillRecord(last_success=NOW - 60))
    for _ in range(2):
        write_report(plan, tmp_path)
    (began,) = notices(tmp_path / "outbox")
    assert (began.kind, began.subject, began.ended) == ("backup-failed", "vps", False)
    text = (tmp_path / "backup.prom").read_text()
    for line in (
        'appliance_backup_last_success_timestamp_seconds{repository="vps"} 1.79999997e+09',
        'appliance_backup_failed{repository="vps",step="open"} 1.0',
        'appliance_backup_failed{repository="vps",step="backup"} 0.0',
        'appliance_backup_size_bytes{repository="vps"} 42.0',
        "appliance_backup_drill_failed 0.0",
        "appliance_backup_drill_last_success_timestamp_seconds",
        "appliance_backup_last_try_timestamp_seconds",
        'appliance_pool_healthy{pool="tank"} 1.0',
    ):
        assert line in text
    write_record(file, GOOD)
    a_pool(tmp_path, "DEGRADED")
    write_report(plan, tmp_path)
    assert [(one.kind, one.ended) for one in notices(tmp_path / "outbox")[1:]] == [
        ("pool-unhealthy", False),
        ("backup-failed", True),
    ]
    assert 'appliance_pool_healthy{pool="tank"} 0.0' in (tmp_path / "backup.prom").read_text()


def test_a_notice_that_cannot_be_written_is_written_later(tmp_path: Path, small_disk: SmallDisk) -> None:
    plan = a_plan(tmp_path, pool=None, drill=None)
    write_record(run_record_file(plan, "vps"), GOOD.model_copy(update={"failed": {"open": "x"}}))
    small_disk.fill()

    def tick() -> None:
        report(
            plan,
            memory=tmp_path / "reported.json",
            metrics=tmp_path / "backup.prom",
            outbox=Outbox(small_disk.folder),
            now=NOW,
            write=lambda _: None,
        )

    tick()
    assert notices(small_disk.folder) == []
    assert 'step="open"} 1.0' in (tmp_path / "backup.prom").read_text()
    small_disk.free()
    tick()
    tick()
    assert len(notices(small_disk.folder)) == 1


def test_a_damaged_record_or_memory_is_reported_and_does_not_end_the_report(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, pool=None)
    file = run_record_file(plan, "vps")
    file.parent.mkdir()
    file.write_text("{")
    drill_record_file(plan).parent.mkdir()
    drill_record_file(plan).write_text("[]")
    (tmp_path / "reported.json").write_text("[1]")
    write_report(plan, tmp_path)
    assert [one.kind for one in notices(tmp_path / "outbox")] == ["backup-failed", "drill-failed"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"repositories": {}}, "repositories"),
        ({"repositories": {"a": {"password_file": "/p"}}}, "set either url or url_file"),
        (
            {"repositories": {"a": {"url": "x", "url_file": "/u", "password_file": "/p"}}},
            "set either url or url_file",
        ),
        ({"repositories": {"a": {"url": "x", "password_file": "p"}}}, "password_file"),
        (
            {"repositories": {"a": {"url": "x", "password_file": "/p", "keep_within": "90d"}}},
            "an append-only server refuses",
        ),
        ({"drill": "bucket"}, "bucket is not one of the repositories"),
        ({"paths": ["relative"]}, "paths"),
        ({"weights": True}, "weights"),
    ],
)
def test_a_plan_that_cannot_work_is_rejected_with_its_place(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        a_plan(tmp_path, **change)
