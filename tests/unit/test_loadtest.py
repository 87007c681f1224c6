"""The load test must not lie: every way an answer can be wrong is named, and only good ones count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import Slo, Smoke
from loadtests.client import Target, ask
from loadtests.report import INVALID, MISSED, PASS, Report, percentile, summarise
from loadtests.sample import Sample
from tests.conftest import ROOT, Process, start_fake


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    running = start_fake(tmp_path_factory.mktemp("fake") / "log")
    yield running
    running.stop()


def asked(engine: Process, directive: str, timeout_s: float = 20.0) -> Sample:
    target = Target(engine.url, "sk-x", "fake", timeout_s)
    return ask(target, f"fake: tokens=12 {directive}", 12)


def test_a_good_answer(engine: Process) -> None:
    sample = asked(engine, "ttft_ms=100 itl_ms=10")
    assert sample.cause == ""
    assert (sample.completion_tokens, sample.frames, sample.finish_reason) == (12, 12, "stop")
    assert sample.ttft is not None
    assert sample.tpot is not None
    assert 0.1 <= sample.ttft < 0.2
    assert 0.009 <= sample.tpot < 0.03


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("cut:5", "cut"),
        ("cut:0", "no answer (RemoteDisconnected)"),
        ("reset", "no answer (RemoteDisconnected)"),
        ("no_done", "no [DONE]"),
        ("no_usage", "no usage"),
        ("no_finish", "no finish_reason"),
        ("garbage:3", "garbage"),
        ("error:3", "error event"),
        ("error_body", "content type application/json"),
        ("content_type", "content type application/json"),
        ("status:503", "status 503"),
        ("stall:3", "timeout"),
        ("hang", "timeout"),
    ],
)
def test_each_fault_is_named(engine: Process, fault: str, cause: str) -> None:
    assert asked(engine, f"fault={fault}", timeout_s=0.5).cause == cause


def test_nobody_listens() -> None:
    assert ask(Target("http://127.0.0.1:1", "k", "m"), "x", 2).cause == "no answer (ConnectionRefusedError)"


def test_an_early_empty_chunk_does_not_hide_a_slow_first_token(engine: Process) -> None:
    sample = asked(engine, "ttft_ms=300 fault=early_empty")
    assert sample.cause == ""
    assert sample.ttft is not None
    assert sample.ttft >= 0.3


def made(ttft: float, cause: str = "") -> Sample:
    return Sample(0.0, 200, ttft, ttft + 1.0, ttft + 1.0, 0.1, 11, 11, "stop", done=True, cause=cause)


def test_the_verdict() -> None:
    slo = Slo(ttft_p99_ms=1000, tpot_p99_ms=150, error_rate=0.5)
    assert summarise([made(0.5)] * 10, slo).exit_code == PASS
    assert summarise([*[made(0.5)] * 10, made(1.5)], slo).exit_code == MISSED
    assert summarise([made(0.5), made(0.5, "cut")], slo).exit_code == PASS
    report = summarise([made(0.5), made(0.1, "cut"), made(0.1, "cut")], slo)
    assert (report.exit_code, report.failures) == (MISSED, {"cut": 2})
    assert report.percentiles["TTFT"]["p50"] == 500, "a failed request lends no latency"
    assert summarise([], slo).exit_code == INVALID
    assert summarise([made(0.5, "cut")], slo).exit_code == MISSED
    assert Report.from_json(report.to_json()) == report


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.01, 1))
def test_percentiles_are_values_that_occurred(values: list[float], share: float) -> None:
    value = percentile(values, share)
    assert value in values
    assert sum(v <= value for v in values) >= share * len(values) - 1e-9


def locust(engine: Process, folder: Path, smoke: Smoke, model: str = "fake") -> tuple[int, Report]:
    report = folder / "report.json"
    argv = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--only-summary"]
    argv += ["--host", engine.url, "-u", str(smoke.users), "-r", str(smoke.users)]
    environment = {
        "APPLIANCE_API_KEY": "sk-x", "APPLIANCE_MODEL": model, "APPLIANCE_SMOKE": smoke.model_dump_json(),
        "APPLIANCE_REPORT": str(report), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env={**os.environ, **environment}
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, Report.from_json(report.read_text())


def test_locust_passes_and_counts(engine: Process, tmp_path: Path) -> None:
    code, report = locust(engine, tmp_path, Smoke(users=3, requests_per_user=2, max_tokens=8))
    assert (code, report.requests, report.failures) == (0, 6, {})
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "pass"


def test_locust_fails_by_slo_and_by_errors(engine: Process, tmp_path: Path) -> None:
    tight = Slo(ttft_p99_ms=0.01)
    code, report = locust(engine, tmp_path, Smoke(users=1, requests_per_user=2, max_tokens=8, slo=tight))
    assert (code, [check.holds for check in report.checks]) == (1, [False, True, True])
    code, report = locust(engine, tmp_path, Smoke(users=1, requests_per_user=2), model="nobody")
    assert (code, report.failures) == (1, {"status 404": 2})
