"""The reader of `nvidia-smi`: its output, and programs that are missing, fail or hang."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from appliance.system.nvidia_smi import (
    ClocksEventReason,
    GpuQuery,
    GpuRow,
    NvidiaSmiError,
    parse_row,
    parse_rows,
    query_command,
)
from tests.conftest import wait_until

FIELDS = ("index", "name", "temperature.gpu", "clocks_event_reasons.active")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of an `nvidia-smi` that the test writes."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "nvidia-smi"


def install(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_the_command_names_the_fields() -> None:
    assert query_command(["index", "name"]) == [
        "nvidia-smi",
        "--query-gpu=index,name",
        "--format=csv,noheader,nounits",
    ]


def test_a_row_has_typed_cells() -> None:
    (row,) = parse_rows('1, "NVIDIA, Corp", 83.5, 0x0000000000000024\n\n', FIELDS)
    assert (row.integer("index"), row.text("name"), row.number("temperature.gpu")) == (1, "NVIDIA, Corp", 83.5)
    reasons = ClocksEventReason.SOFTWARE_POWER_CAP | ClocksEventReason.SOFTWARE_THERMAL_SLOWDOWN
    assert row.bits("clocks_event_reasons.active") == reasons


@pytest.mark.parametrize("cell", ["[N/A]", "N/A", "[Not Supported]", "[Unknown Error]", ""])
def test_a_missing_value_is_none(cell: str) -> None:
    row = GpuRow({"power.draw": cell})
    assert (row.number("power.draw"), row.integer("power.draw"), row.bits("power.draw")) == (None, None, 0)


@pytest.mark.parametrize("line", ["No devices were found", "1, A", "first, A, 20, 0x0", "1, A, 20, 0x0, 5"])
def test_a_line_of_another_shape_is_not_a_row(line: str) -> None:
    assert parse_row(line, FIELDS) is None
    with pytest.raises(ValueError, match="not a row of 4 fields"):
        parse_rows(f"0, A, 20, 0x0\n{line}", FIELDS)


def test_a_query_skips_a_gpu_that_is_not_reachable(program: Path) -> None:
    install(program, "echo 'Unable to determine the device handle'; echo '1, A, 20, 0x0'")
    assert [row.integer("index") for row in GpuQuery(FIELDS).rows()] == [1]


def test_a_missing_program_is_an_error(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(NvidiaSmiError, match="is not installed"):
        GpuQuery(FIELDS).rows()


def test_a_failure_and_a_hang_are_errors(program: Path) -> None:
    install(program, "exit 9")
    with pytest.raises(NvidiaSmiError, match="exit code 9"):
        GpuQuery(FIELDS).rows()
    install(program, "sleep 60 & sleep 60")
    with pytest.raises(NvidiaSmiError, match=r"within 0\.2 s"):
        GpuQuery(FIELDS, timeout_s=0.2).rows()


def test_a_query_is_cancelled_while_its_process_begins(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program runs, and the query does not have its process yet."""
    install(program, "sleep 60")
    query = GpuQuery(FIELDS, timeout_s=60)
    begin = subprocess.Popen

    def cancelled(*args: Any, **options: Any) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = begin(*args, **options)
        query.cancel()
        return process

    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", cancelled)
        with pytest.raises(NvidiaSmiError, match="exit code -9"):
            query.rows()
    assert time.monotonic() - began < 30
    install(program, "echo")
    assert query.rows() == ()


def test_another_thread_cancels_a_query(program: Path) -> None:
    started = program.parent / "started"
    install(program, f"touch {started}; sleep 60")
    query = GpuQuery(FIELDS, timeout_s=60)
    failures: list[NvidiaSmiError] = []

    def run() -> None:
        try:
            query.rows()
        except NvidiaSmiError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    began = time.monotonic()
    thread.start()
    wait_until(started.exists, "that nvidia-smi runs")
    query.cancel()
    thread.join(30)
    assert time.monotonic() - began < 30
    assert "exit code -9" in str(failures[0])
