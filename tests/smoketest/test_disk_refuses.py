"""The smoke test on a disk that is full or read-only, at each step: a sentence and exit status 1, never a pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.errors import StoreError
from appliance.smoketest import report
from appliance.smoketest.report import SmokeStep
from appliance.smoketest.run import prove, proven_before
from tests.conftest import ROOT, RunningService, serving
from tests.smalldisk import SmallDisk, mounted
from tests.smoketest.test_run import HERE, SMOKE, a_proof

FULL, READ_ONLY = r"No space left on device.*free space on its disk", r"Read-only file system.*mount -o remount,rw"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, RunningService]]:
    with serving(tmp_path_factory.mktemp("full"), smoke=SMOKE) as service:
        yield load(service.config), service


@pytest.mark.parametrize(
    "at",
    [
        "token chat",  # before the load begins: its report finds no room
        "load TTFT p99",  # before its page with plots
    ],
)
def test_a_disk_that_fills_up(running: tuple[Site, RunningService], small_disk: SmallDisk, at: str) -> None:
    site, service = running
    said: list[SmokeStep] = []

    def say(step: SmokeStep) -> None:
        said.append(step)
        if step.name == at:
            small_disk.fill()

    folder = small_disk.folder / "8"
    with pytest.raises(StoreError, match="free space on its disk"):
        prove(site, service.data, key=service.key, folder=folder, what=HERE, say=say)
    (refused,) = [step for step in said if step.level == "fail" and step.name == "load"]
    assert "free space on its disk" in refused.seen
    assert report.latest(small_disk.folder, HERE.place.generation) is None, "half a report is no report"


def test_the_report_says_what_the_disk_refused_once_there_is_room(
    running: tuple[Site, RunningService], small_disk: SmallDisk
) -> None:
    site, service = running

    def say(step: SmokeStep) -> None:
        if step.name == "load TTFT p99":
            small_disk.fill()
        if step.name == "load":
            small_disk.free()

    folder = small_disk.folder / "8"
    with pytest.raises(StoreError, match=r"load\.html cannot be written \(No space left"):
        prove(site, service.data, key=service.key, folder=folder, what=HERE, say=say)
    kept = report.latest(small_disk.folder, HERE.place.generation)
    assert kept is not None
    assert not kept.passed
    assert "load.html cannot be written" in kept.line


def test_a_read_only_disk_is_named(running: tuple[Site, RunningService], small_disk: SmallDisk) -> None:
    site, service = running
    small_disk.read_only()
    with pytest.raises(StoreError, match=READ_ONLY):
        prove(site, service.data, key=service.key, folder=small_disk.folder / "8", what=HERE, say=lambda _: None)


def test_a_report_on_a_full_disk_leaves_the_one_before(small_disk: SmallDisk) -> None:
    folder = report.folder_of(small_disk.folder, HERE.place.generation)
    report.save(a_proof(), folder)
    small_disk.fill()
    with pytest.raises(StoreError, match=FULL):
        report.save(a_proof(passed=False), folder)
    assert report.latest(small_disk.folder, HERE.place.generation) == a_proof()


def test_what_cannot_be_noted_of_this_boot_is_said(small_disk: SmallDisk) -> None:
    small_disk.read_only()
    with pytest.raises(StoreError, match=READ_ONLY):
        proven_before(small_disk.folder, HERE, small_disk.folder / "begun")
    with pytest.raises(StoreError, match=r"absent/begun cannot be written \(No such file or directory\)"):
        proven_before(small_disk.folder, HERE, small_disk.folder / "absent" / "begun")


@pytest.mark.parametrize(("state", "said"), [("full", FULL), ("read-only", READ_ONLY)])
@pytest.mark.parametrize("which", ["reports", "run"])
def test_the_command_itself(
    running: tuple[Site, RunningService], tmp_path: Path, small_disk: SmallDisk, state: str, said: str, which: str
) -> None:
    """In a mount namespace of its own that looks like NixOS; /run is the small disk, or the reports are on it."""
    _, service = running
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
        # A note without content needs no room: the test is made, and passes or fails by what it finds.
        assert "cannot be written" not in done.stderr
        return
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(said, line), line
    assert "PASS" not in done.stdout
