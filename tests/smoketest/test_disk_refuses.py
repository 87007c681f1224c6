"""The smoke test on a disk that is full or read-only, at each step: one line and exit code 1, never a pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.contract.model import Site
from appliance.errors import StoreError
from appliance.smoketest import report
from appliance.smoketest.report import SmokeStep
from appliance.smoketest.run import passed_before, run_smoke_test
from tests.conftest import ROOT, RunningService
from tests.smalldisk import SmallDisk, mounted
from tests.smoketest.conftest import HERE, a_proof

FULL, READ_ONLY = r"No space left on device.*free space on its disk", r"Read-only file system.*mount -o remount,rw"


@pytest.mark.parametrize(
    "at",
    [
        "token chat",  # before the load: its report does not fit
        "load TTFT p99",  # before its page with plots
    ],
)
def test_a_disk_that_fills_up(
    site_and_service: tuple[Site, RunningService], small_disk: SmallDisk, at: str
) -> None:
    site, service = site_and_service
    shown: list[SmokeStep] = []

    def on_step(step: SmokeStep) -> None:
        shown.append(step)
        if step.name == at:
            small_disk.fill()

    folder = small_disk.folder / "8"
    with pytest.raises(StoreError, match="free space on its disk"):
        run_smoke_test(site, service.data, key=service.key, folder=folder, system=HERE, on_step=on_step)
    (refused,) = [step for step in shown if step.level == "fail" and step.name == "load"]
    assert "free space on its disk" in refused.seen
    assert report.latest(small_disk.folder, HERE.running.generation) is None, "an incomplete report is not kept"


def test_a_report_with_room_names_the_refused_file(
    site_and_service: tuple[Site, RunningService], small_disk: SmallDisk
) -> None:
    site, service = site_and_service

    def on_step(step: SmokeStep) -> None:
        if step.name == "load TTFT p99":
            small_disk.fill()
        if step.name == "load":
            small_disk.free()

    folder = small_disk.folder / "8"
    with pytest.raises(StoreError, match=r"load\.html cannot be written \(No space left"):
        run_smoke_test(site, service.data, key=service.key, folder=folder, system=HERE, on_step=on_step)
    kept = report.latest(small_disk.folder, HERE.running.generation)
    assert kept is not None
    assert not kept.passed
    assert "load.html cannot be written" in kept.line


def test_a_read_only_disk_is_named(site_and_service: tuple[Site, RunningService], small_disk: SmallDisk) -> None:
    site, service = site_and_service
    small_disk.read_only()
    with pytest.raises(StoreError, match=READ_ONLY):
        run_smoke_test(
            site, service.data, key=service.key, folder=small_disk.folder / "8", system=HERE, on_step=lambda _: None
        )


def test_a_full_disk_keeps_the_earlier_report(small_disk: SmallDisk) -> None:
    folder = report.folder_of(small_disk.folder, HERE.running.generation)
    report.save(a_proof(), folder)
    small_disk.fill()
    with pytest.raises(StoreError, match=FULL):
        report.save(a_proof(passed=False), folder)
    assert report.latest(small_disk.folder, HERE.running.generation) == a_proof()


def test_a_boot_that_cannot_be_recorded_is_an_error(small_disk: SmallDisk) -> None:
    small_disk.read_only()
    with pytest.raises(StoreError, match=READ_ONLY):
        passed_before(small_disk.folder, HERE, small_disk.folder / "begun")
    with pytest.raises(StoreError, match=r"absent/begun cannot be written \(No such file or directory\)"):
        passed_before(small_disk.folder, HERE, small_disk.folder / "absent" / "begun")


@pytest.mark.parametrize(("state", "message"), [("full", FULL), ("read-only", READ_ONLY)])
@pytest.mark.parametrize("which", ["reports", "run"])
def test_the_command_reports_the_disk(
    site_and_service: tuple[Site, RunningService],
    tmp_path: Path,
    small_disk: SmallDisk,
    state: str,
    message: str,
    which: str,
) -> None:
    """In a mount namespace that looks like NixOS; the small disk is /run, or the reports are on it."""
    _, service = site_and_service
    inside = 'mount --bind "$1" /run && shift && exec "$@"'
    with mounted(tmp_path / "run") as run:
        for link in ("booted-system", "current-system"):
            (run.folder / link).symlink_to(tmp_path)
        (run.folder / "appliance-smoke").mkdir()
        disk = small_disk if which == "reports" else run
        disk.fill() if state == "full" else disk.read_only()
        argv = [sys.executable, "-m", "appliance", "smoke", "--config", str(service.config), "--once"]
        argv += ["--reports", str(small_disk.folder)]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", inside, "sh", run.folder, *argv],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=ROOT,
            env={**os.environ, "APPLIANCE_API_KEY": service.key},
        )
    if (which, state) == ("run", "full"):
        # An empty file needs no room: the test runs, and passes or fails by its findings.
        assert "cannot be written" not in done.stderr
        return
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line
    assert "PASS" not in done.stdout
