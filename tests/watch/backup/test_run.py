"""Backups with the real restic: their content, and the record after each failure."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.contract.backup import RunRecord, read_run_record, run_record_file, write_record
from appliance.errors import ConfigError, StoreError
from appliance.system import lock_file
from appliance.system.stopping import Stop
from appliance.watch.backup.restic import RepositoryAccess, parse_environment
from appliance.watch.backup.stage import stage
from tests.conftest import ROOT, wait_until
from tests.smalldisk import SmallDisk
from tests.watch.backup.site import PASSWORD, BackedUpMachine, end, make_machine


def record_of(machine: BackedUpMachine) -> RunRecord:
    return read_run_record(run_record_file(machine.plan, "vps"))


def add_path(machine: BackedUpMachine, path: Path) -> None:
    table = json.loads(machine.plan_file.read_text())
    table["paths"].append(str(path))
    machine.plan_file.write_text(json.dumps(table))


def start_slow_run(machine: BackedUpMachine) -> tuple[subprocess.Popen[str], int]:
    """Start a backup that takes minutes; return it and the process id of its restic, which holds the lock."""
    big = machine.folder / "big"
    # One pack: with two uploads, the local backend has no connection left for the removal of the lock.
    big.write_bytes(os.urandom(3_000_000))
    add_path(machine, big)
    machine.change_plan(limit_upload_kib=20)
    process = subprocess.Popen(
        machine.argv("run", "vps", "--plan", machine.plan_file, "--cache", machine.folder / "cache"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def saving() -> int | None:
        for entry in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            # Packs follow the lock, which restic removes by itself only after it has verified it.
            if b"\0backup\0" in Path(f"/proc/{entry}/cmdline").read_bytes() and locks(machine) and machine.packs():
                return int(entry)
        return None

    wait_until(lambda: saving() is not None, "restic holds its lock and saves", 60)
    return process, saving() or 0


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Let this process reap the children of a killed one, which init does on a real machine."""
    subreaper = 36
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(subreaper, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(subreaper, 0, 0, 0, 0)


def locks(machine: BackedUpMachine) -> list[Path]:
    return [file for file in (machine.repository / "locks").iterdir() if "-tmp-" not in file.name]


def test_a_run_saves_the_copy_and_the_paths_and_records_its_success(machine: BackedUpMachine) -> None:
    record = machine.back_up()
    assert record.failed == {}
    assert record.last_success is not None
    assert record.size_bytes
    assert record_of(machine) == record
    (snapshot,) = machine.snapshots()
    assert snapshot["hostname"] == "gpu"
    saved = machine.restic().run("ls", "--no-lock", "latest", timeout_s=60).out
    for path in ("stage/current/appliance.sqlite", "stage/current/backup-manifest.json", "age.txt", "wg0.key"):
        assert str(machine.folder / path) in saved
    # The copy has the content of a link into the store, not the link.
    assert f"files{machine.folder}/etc/appliance.json" in saved
    again = machine.back_up()
    assert again.failed == {}
    assert len(machine.snapshots()) == 2
    assert (again.last_check, again.checked_parts) == (record.last_check, 1)
    shown = json.loads(machine.run("status", "--plan", machine.plan_file, "--json"))
    assert shown["repositories"]["vps"]["last_success"] == again.last_success
    machine.change_plan(check_days=1e-9, check_parts=2)
    assert machine.back_up().checked_parts == 2


def test_a_killed_backup_leaves_a_lock_that_the_next_run_removes(machine: BackedUpMachine) -> None:
    process, restic = start_slow_run(machine)
    assert PASSWORD.encode() not in Path(f"/proc/{restic}/cmdline").read_bytes()
    # As at a power cut: both at once.
    with adopting():
        code, _ = end(process, signal.SIGKILL)
        os.kill(restic, signal.SIGKILL)
        os.waitpid(restic, 0)
    assert code == -signal.SIGKILL
    assert len(locks(machine)) == 1
    left = record_of(machine)
    assert left.last_success is None
    assert left.ended_at is None
    (machine.folder / "big").write_bytes(b"small now")
    record = machine.back_up()
    assert record.failed == {}
    assert record.last_success is not None
    assert locks(machine) == []


def test_sigterm_ends_restic_in_order_and_is_recorded(machine: BackedUpMachine) -> None:
    process, restic = start_slow_run(machine)
    code, output = end(process, signal.SIGTERM)
    assert code == 1
    assert "interrupted by SIGTERM" in output
    assert locks(machine) == []
    assert not Path(f"/proc/{restic}").exists()
    record = record_of(machine)
    assert record.failed == {"backup": "interrupted by SIGTERM"}
    assert record.last_success is None
    assert record.ended_at is not None


def test_a_backup_that_exceeds_its_limit_ends_and_leaves_no_lock(machine: BackedUpMachine) -> None:
    big = machine.folder / "big"
    big.write_bytes(os.urandom(3_000_000))
    add_path(machine, big)
    machine.change_plan(limit_upload_kib=20, timeout_s=10)
    write_record(run_record_file(machine.plan, "vps"), RunRecord(last_check=time.time()))
    record = machine.back_up()
    assert record.failed == {"backup": "did not end within 10 s"}
    assert locks(machine) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"password_file": "wg0.key"}, "password or no key found"),
        ({"password_file": "absent"}, "no such file; sops-nix or the owner puts this secret there"),
        ({"url": "rest:http://gpu:s3cret@127.0.0.1:1/gpu/"}, "connection refused"),
    ],
    ids=["other-password", "no-password", "server-down"],
)
def test_a_repository_that_cannot_be_opened_fails_and_keeps_the_last_success(
    machine: BackedUpMachine, change: dict[str, str], reason: str
) -> None:
    write_record(run_record_file(machine.plan, "vps"), RunRecord(last_success=1.0))
    if "password_file" in change:
        change = {"password_file": str(machine.folder / change["password_file"])}
    machine.change_plan(**change)
    lines: list[str] = []
    record = machine.back_up(report=lines.append)
    assert list(record.failed) == ["open"]
    assert reason in record.failed["open"]
    assert record.last_success == 1.0
    assert not any(secret in text for text in (*lines, *record.failed.values()) for secret in (PASSWORD, "s3cret"))


def test_a_server_that_never_responds_fails_within_the_limit(machine: BackedUpMachine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        machine.change_plan(url=f"rest:http://127.0.0.1:{server.getsockname()[1]}/gpu/", open_timeout_s=2)
        record = machine.back_up()
    assert record.failed == {"open": "did not end within 2 s"}


def test_the_first_backup_makes_the_repository(tmp_path: Path) -> None:
    machine = make_machine(tmp_path / "machine", initialised=False)
    assert machine.back_up().failed == {}
    assert len(machine.snapshots()) == 1


def test_a_repository_that_vanished_is_not_replaced_by_a_new_one(machine: BackedUpMachine) -> None:
    write_record(run_record_file(machine.plan, "vps"), RunRecord(last_success=1.0))
    machine.repository.rename(machine.folder / "elsewhere")
    record = machine.back_up()
    assert "the repository has vanished" in record.failed["open"]
    assert not machine.repository.exists()


def test_flipped_bytes_fail_the_check_until_a_check_passes(machine: BackedUpMachine) -> None:
    assert machine.back_up().failed == {}
    for file in machine.packs():
        (machine.folder / f"kept-{file.name}").write_bytes(file.read_bytes())
    machine.damage()
    machine.change_plan(check_days=1e-9)
    record = machine.back_up()
    assert list(record.failed) == ["check"]
    # The snapshots are still made: a damaged old one must not end new ones.
    assert record.last_success is not None
    machine.change_plan(check_days=1000)
    # No check is due, and the failure of the last one stays.
    assert list(machine.back_up().failed) == ["check"]
    machine.change_plan(check_days=1e-9)
    for file in machine.packs():
        if (kept := machine.folder / f"kept-{file.name}").exists():
            file.write_bytes(kept.read_bytes())
    assert machine.back_up().failed == {}


def test_a_full_repository_fails_the_backup_and_recovers(machine: BackedUpMachine, small_disk: SmallDisk) -> None:
    machine.change_plan(url=str(small_disk.folder / "repository"))
    assert machine.back_up().failed == {}
    big = machine.folder / "big"
    big.write_bytes(os.urandom(3_000_000))
    add_path(machine, big)
    record = machine.back_up()
    assert "no space left on device" in record.failed["backup"]
    big.write_bytes(b"small now")
    after = machine.back_up()
    assert after.failed == {}, after


def test_a_missing_path_fails_and_the_others_are_saved(machine: BackedUpMachine) -> None:
    add_path(machine, machine.folder / "chats")
    record = machine.back_up()
    assert f"{machine.folder}/chats does not exist" in record.failed["backup"]
    assert record.last_success is None
    assert len(machine.snapshots()) == 1


def test_an_unreadable_file_fails_and_the_partial_snapshot_is_kept(machine: BackedUpMachine) -> None:
    # The first page of a process's memory cannot be read, also by root.
    add_path(machine, Path("/proc/self/mem"))
    record = machine.back_up()
    assert "the snapshot is partial" in record.failed["backup"]
    assert record.last_success is None
    assert len(machine.snapshots()) == 1


def test_a_copy_that_fails_leaves_the_other_paths_saved(machine: BackedUpMachine) -> None:
    (machine.data / "appliance.sqlite").write_bytes(b"not a database " * 1000)
    record = machine.back_up()
    assert list(record.failed) == ["stage", "backup"]
    assert "cannot be copied" in record.failed["stage"]
    assert str(machine.folder / "age.txt") in machine.snapshots()[0]["paths"]
    assert record.last_success is None


def test_an_old_copy_is_not_a_success(machine: BackedUpMachine) -> None:
    now = time.time()
    stage(machine.plan, now=now)
    record = machine.back_up(make_stage=False, clock=lambda: now + 30 * 3600)
    assert "the copy is 30 h old" in record.failed["stage"]
    assert record.last_success is None


def test_a_second_backup_waits_for_the_first(machine: BackedUpMachine) -> None:
    (machine.folder / "state").mkdir()
    held = lock_file.take(machine.folder / "state/lock")
    lines: list[str] = []
    stop = Stop()
    results: list[RunRecord | StoreError] = []

    def second() -> None:
        try:
            results.append(machine.back_up(stop=stop, report=lines.append))
        except StoreError as error:
            results.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    wait_until(lambda: bool(lines), "the second backup waits")
    held.release()
    thread.join(60)
    assert isinstance(results[0], RunRecord)
    assert results[0].failed == {}


def test_a_waiting_backup_ends_when_it_is_stopped(machine: BackedUpMachine) -> None:
    (machine.folder / "state").mkdir()
    held = lock_file.take(machine.folder / "state/lock")
    stop = Stop()
    stop.request("SIGTERM")
    with pytest.raises(StoreError, match="another backup still runs"):
        machine.back_up(stop=stop)
    held.release()


def test_old_snapshots_are_pruned_if_the_plan_has_an_age(machine: BackedUpMachine) -> None:
    machine.change_plan(append_only=False)
    machine.back_up()
    restic = machine.restic()
    old = ["backup", "--host", "gpu", "--tag", "appliance", "--time", "2020-01-01 00:00:00"]
    assert restic.run(*old, str(machine.folder / "age.txt"), timeout_s=60).ok
    other = ["backup", "--host", "other", "--tag", "appliance", "--time", "2020-01-01 00:00:00"]
    assert restic.run(*other, str(machine.folder / "age.txt"), timeout_s=60).ok
    machine.change_plan(append_only=False, keep_within="30d")
    assert machine.back_up().failed == {}
    assert sorted((one["hostname"], one["time"][:4] > "2020") for one in machine.snapshots()) == [
        ("gpu", True),
        ("gpu", True),
        ("other", False),
    ]
    # The same by hand, with the escrow sheet on another machine.
    sheet = machine.folder / "sheet.toml"
    machine.run("escrow", "--plan", machine.plan_file, "--output", sheet)
    assert restic.run(*old, str(machine.folder / "age.txt"), timeout_s=60).ok
    assert len(machine.snapshots()) == 4
    machine.run("prune", "--escrow", sheet, "--keep-within", "30d", "--cache", machine.folder / "cache")
    assert len(machine.snapshots()) == 3


def test_a_damaged_record_is_replaced(machine: BackedUpMachine) -> None:
    file = run_record_file(machine.plan, "vps")
    file.parent.mkdir()
    file.write_text("{")
    assert machine.back_up().failed == {}
    assert record_of(machine).last_success is not None


def test_a_record_that_cannot_be_written_ends_the_run(machine: BackedUpMachine, small_disk: SmallDisk) -> None:
    table = json.loads(machine.plan_file.read_text()) | {"state": str(small_disk.folder)}
    machine.plan_file.write_text(json.dumps(table))
    write_record(small_disk.folder / "vps.record.json", RunRecord())
    (small_disk.folder / "lock").touch()
    small_disk.fill()
    output = machine.run("run", "vps", "--plan", machine.plan_file, "--cache", machine.folder / "cache", code=1)
    assert "vps.record.json cannot be written (No space left on device)" in output


def test_messages_have_no_secret() -> None:
    access = RepositoryAccess("rest:https://gpu:p4ssw0rd@vps/gpu/", "hunter22", {"TOKEN": "abcdef"})
    text = access.without_secrets("p4ssw0rd hunter22 abcdef vps")
    assert text == "*** *** *** vps"
    assert not any(secret in repr(access) for secret in ("p4ssw0rd", "hunter22", "abcdef"))


def test_an_environment_file_has_names_and_values() -> None:
    assert parse_environment("# a comment\nA=1\n\nB='x=y'\n", "f") == {"A": "1", "B": "x=y"}


@pytest.mark.parametrize("text", ["A", "1A=2", "A B=2"])
def test_an_environment_file_with_another_line_is_rejected_without_its_content(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_environment(text, "the environment of vps")
    assert str(raised.value) == "the environment of vps: line 1 is not NAME=value; write one variable a line"
