"""Programs that are missing or hang."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from appliance.doctor.host import CannotLookError, HostReader, TimedOutError
from appliance.doctor.runner import examine
from tests.conftest import wait_until
from tests.doctor.fakehost import FakeHost


def test_a_driver_that_hangs_is_a_failure_and_its_processes_end(gpu: FakeHost, programs: Path) -> None:
    # Its child process keeps the pipes open, as the child of a wrapper would.
    (programs / "nvidia-smi").write_text('#!/bin/sh\nsleep 300 &\necho $! >> "$FAKE/children"\nwait\n')
    context = dataclasses.replace(gpu.context(), host=HostReader(gpu.root, timeout_s=0.5))
    began = time.monotonic()
    results = examine(context, ["driver", "cards", "power", "throttle", "numa"]).results
    assert time.monotonic() - began < 20
    assert [one.name for one in results] == ["driver", "cards", "power", "throttle", "numa"]
    assert [one.level for one in results] == ["fail", "unknown", "unknown", "unknown", "unknown"]
    assert "did not respond within 0.5 s" in results[0].seen
    assert results[0].cause == "driver-mismatch"
    children = [int(pid) for pid in (gpu.fake / "children").read_text().split()]
    assert children
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "the end of its child process")


def test_a_program_that_is_missing_or_hangs(gpu: FakeHost) -> None:
    with pytest.raises(CannotLookError, match="no-such-program is not installed"):
        HostReader(gpu.root).run("no-such-program")
    with pytest.raises(TimedOutError, match=r"sleep did not respond within 0\.2 s"):
        HostReader(gpu.root, timeout_s=0.2).run("sleep", "60")
