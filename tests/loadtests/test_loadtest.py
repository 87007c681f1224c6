"""`appliance loadtest` as a whole: a gateway or an engine, Locust, every output, every verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import main
from appliance.contract.model import Slo, Smoke
from appliance.smoketest import load
from appliance.store.keys import KeyStore
from appliance.system.http_request import send_request
from appliance.system.stopping import Stop
from loadtests.parameters import LoadPlan
from loadtests.report import Report
from loadtests.run import environment
from loadtests.scenarios import SCENARIOS
from tests.conftest import ROOT, RunningService, StartedProcess, http, opens, start, start_mock, wait_until
from tests.fakes.witness import long_run
from tests.loadtests.stall import STALL
from tests.ports import free_port

FEW = ("--users", "2", "--requests", "2", *STALL)
"""A load of a second."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedProcess]:
    running = start_mock(tmp_path_factory.mktemp("fake") / "log")
    yield running
    running.stop()


def loadtest(*words: object, key: str = "sk-x", path: str | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "appliance", "loadtest", *map(str, words)]
    environ = {**os.environ, "APPLIANCE_API_KEY": key, "APPLIANCE_CONFIG": "/nonexistent", "COLUMNS": "150"}
    if path is not None:
        environ["PATH"] = path
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT, env=environ)


def report_of(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(path.read_text())
    return table


def test_every_output_of_a_run_through_the_gateway(service: RunningService, tmp_path: Path) -> None:
    files = {name: tmp_path / f"report.{name}" for name in ("json", "junit", "html", "samples")}
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, 71, 450.10, 98, 0x0000000000000024'\n")
    program.chmod(0o755)
    words = [word for name, path in files.items() for word in (f"--{name}", path)]
    done = loadtest(
        "multiturn", "--config", service.config, *FEW, "--requests", "3", "--prefix-tokens", "40", "--think", "0",
        *words, key=service.key, path=f"{tmp_path}:{os.environ['PATH']}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS: every SLO holds" in done.stdout
    report = report_of(files["json"])
    assert (report["verdict"], report["requests"], report["failures"]) == ("pass", 6, {})
    assert "the engine's own tokenizer" in report["tokens"]["sizing"]
    counted = report["server"]["gateway"]["counted"]
    assert sum(v for k, v in counted.items() if k == "appliance_gateway_requests_total") >= 6
    assert report["server"]["gateway"]["mean_ms"]["TTFT"] > 0
    assert report["server"]["cards"]["series"]["GPU 0 °C"][0] == 71
    assert any("GPU 0 was slowed down" in note for note in report["notes"])
    assert ET.parse(files["junit"]).getroot().get("failures") == "0"
    assert "GPU" in files["html"].read_text()
    lines = [json.loads(line) for line in files["samples"].read_text().splitlines()]
    assert sum("sample" in line for line in lines) == 6
    assert service.key not in files["samples"].read_text() + files["json"].read_text() + done.stdout
    # The last turn of a chat contains the earlier responses.
    messages = json.loads(http(service.engine.url + "/last").json["body"])["messages"]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2, "user"]


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("cut:3", "truncated"),
        ("no_usage", "no usage"),
        ("stall:1", "stalled"),
        ("double", "doubled tokens"),
    ],
)
def test_a_server_with_errors_misses_its_slo(tmp_path: Path, fault: str, cause: str) -> None:
    server = start_mock(tmp_path / "log", "--fault", fault)
    try:
        out = tmp_path / "report.json"
        argv = ("--url", server.url, "--model", "fake", *FEW, "--requests", "1", "--stall", "0.7", "--json", out)
        done = loadtest(*argv)
    finally:
        server.stop()
    assert (done.returncode, report_of(out)["failures"]) == (1, {cause: 2}), done.stdout + done.stderr


def test_a_slow_first_token_is_not_hidden_by_an_early_chunk(tmp_path: Path) -> None:
    server = start_mock(tmp_path / "log", "--fault", "early_empty", "--ttft-ms", "400")
    try:
        done = loadtest("--url", server.url, "--model", "fake", *FEW, "--slo-ttft-p99-ms", "300")
    finally:
        server.stop()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "TTFT p99 missed" in done.stdout


def test_an_open_loop_with_bursts_cancelled_requests_and_a_warmup(engine: StartedProcess, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = loadtest(
        "n8n", "--url", engine.url, "--duration", "3s", "--warmup", "1s", "--burst", "5", "--burst-every", "1s",
        "--rate", "20", "--cancel-share", "0.5", *STALL, "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(out)
    assert report["models"] == ["fake"], "the model is that of /v1/models"
    assert report["warmup_requests"] >= 5
    assert report["cancelled"] > 0
    assert report["failures"] == {}
    assert report["users"] > 1
    assert "two probes" in report["tokens"]["sizing"]
    wait_until(lambda: http(engine.url + "/stats").json["active"] == 0, "no running request")


def test_a_swap_is_counted_by_model(tmp_path: Path, engine: StartedProcess) -> None:
    out = tmp_path / "report.json"
    words = ("swap", "--url", engine.url, "--model", "fake", "--model", "fake:lora", *FEW, "--requests", "4")
    done = loadtest(*words, "--swap-after", "2", "--think", "0", "--json", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: one["requests"] for name, one in report_of(out)["by_model"].items()} == {
        "fake": 4,
        "fake:lora": 4,
    }


def test_a_client_that_is_too_slow_invalidates_the_run(engine: StartedProcess, tmp_path: Path) -> None:
    out = tmp_path / "junit.xml"
    words = ("--url", engine.url, "--model", "fake", "--duration", "2s", "--warmup", "0")
    done = loadtest(*words, "--client-lag-ms", "0.000001", "--junit", out)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "INVALID: the client's lag p95" in " ".join(done.stdout.split())
    root = ET.parse(out).getroot()
    assert root.get("errors") == root.get("tests")


def test_a_baseline_is_compared_only_with_the_same_load(engine: StartedProcess, tmp_path: Path) -> None:
    before, now = tmp_path / "before.json", tmp_path / "now.json"
    words = ("--model", "fake", "--users", "6", "--requests", "6", *STALL)
    assert loadtest("--url", engine.url, *words, "--json", before).returncode == 0
    slow = start_mock(tmp_path / "log", "--ttft-ms", "200", "--itl-ms", "1")
    try:
        done = loadtest("--url", slow.url, *words, "--baseline", before, "--json", now)
    finally:
        slow.stop()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "TTFT p50 against the baseline" in done.stdout
    assert {c["measure"]: c["verdict"] for c in report_of(now)["baseline"]}["TTFT p50"] == "worse"
    done = loadtest("--url", engine.url, *words, "--turns", "2", "--baseline", before)
    assert (done.returncode, "its turns was 1, not 2" in done.stderr) == (2, True)


def test_the_search_finds_the_highest_load(tmp_path: Path) -> None:
    # Two sequences at once of 3 s each: a third user waits 3 s for the first token, more than a stall lasts.
    small = start_mock(tmp_path / "log", "--capacity", "2", "--tokens", "10", "--itl-ms", "300", "--ttft-ms", "10")
    out = tmp_path / "report.json"
    words = ("--url", small.url, "--model", "fake", *STALL, "--users", "2", "--requests", "1")
    try:
        done = loadtest("chat", *words, "--find-goodput", "--slo-ttft-p99-ms", "2700", "--json", out)
    finally:
        small.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(out)
    assert [(step["load"], step["held"]) for step in report["search"]] == [(2, True), (4, False), (3, False)]
    assert report["parameters"]["users"] == 2
    assert "highest load that meets the SLOs: 2 users" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nonsense",), "scenario 'nonsense' does not exist; there are smoke, chat"),
        (("--users", "none"), "--users: 'none' is not a number"),
        (("--duration", "soon"), "--duration: 'soon' is not a duration"),
        (("--think", "3:1"), "think_s: the lower end 3 is above the upper end 1"),
        (("--warmup", "90", "--duration", "1m"), "--warmup of 90 s leaves no time of --duration 60 s"),
        (("--baseline", "/nonexistent.json"), "--baseline /nonexistent.json: No such file"),
        (("--baseline", "README.md"), "--baseline README.md: not a report of `appliance loadtest --json`"),
        (("--json", "/nonexistent/report.json"), "its folder is missing"),
        (("--keys", "/nonexistent"), "--keys /nonexistent: No such file"),
        (("swap",), "scenario swap needs 2 model(s), --model names 1"),
        (("--url", "localhost:8000"), "begin it with http:// or https://"),
        (("--slo-error-rate", "2"), "error_rate: input should be less than or equal to 1, not 2"),
    ],
)
def test_impossible_options_are_rejected_before_the_first_request(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APPLIANCE_API_KEY", "sk-x")
    monkeypatch.setenv("APPLIANCE_CONFIG", "/nonexistent")
    assert main(["loadtest", "--url", "http://127.0.0.1:1", "--model", "fake", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_rejected_request_ends_the_run_before_the_load(service: RunningService) -> None:
    done = loadtest("--url", service.url, "--model", "fake", key="sk-wrong")
    assert (done.returncode, "the key is not valid" in done.stderr) == (2, True)
    done = loadtest("--url", service.url, "--model", "unknown", key=service.key)
    assert (done.returncode, "there is no such model" in done.stderr) == (2, True)
    done = loadtest("rag", "--config", service.config, key=service.key)
    assert (done.returncode, "do not fit engines.chat.context = 4096" in done.stderr) == (2, True)


def test_users_take_keys_in_turn(service: RunningService, tmp_path: Path) -> None:
    keys = KeyStore(service.data)
    bert, cleo = keys.create("bert"), keys.create("cleo")
    keys.close()
    (tmp_path / "keys").write_text(f"{bert}\n{cleo}\n")
    done = loadtest("--url", service.url, "--model", "fake", *FEW, "--keys", tmp_path / "keys")
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until(lambda: {"bert", "cleo"} <= {row["user"] for row in service.rows()}, "usage records of both users")


def test_an_interrupted_run_has_an_invalid_report(engine: StartedProcess, tmp_path: Path) -> None:
    """Moments and signals are in test_long_runs.py; this tests that the requests of the engine end."""
    out = tmp_path / "report.json"
    words = ("loadtest", "--url", engine.url, "--model", "fake", "--warmup", "0", "--json", out)
    before = http(engine.url + "/stats").json["requests"]
    with long_run(tmp_path, *words, ignored=(signal.SIGINT,), APPLIANCE_API_KEY="k") as run:
        run.until(lambda: http(engine.url + "/stats").json["requests"] > before + 60, "the load runs")
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 2, run.output
        assert "INVALID: the run was interrupted" in run.output
    assert report_of(out)["requests"] > 0
    wait_until(lambda: http(engine.url + "/stats").json["active"] == 0, "no running request")


def test_the_smoke_scenario_passes_and_misses(engine: StartedProcess, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    smoke = Smoke(users=3, requests_per_user=2, max_tokens=8)
    more: dict[str, Any] = {"url": engine.url, "key": "k", "folder": tmp_path, "stop": Stop()}
    report = load.run_load(smoke, model="fake", **more)
    assert (report.exit_code, report.requests, report.failures) == (0, 6, {})
    tight = smoke.model_copy(update={"slo": Slo(ttft_p99_ms=0.01)})
    report = load.run_load(tight, model="fake", **more)
    assert (report.exit_code, [check.holds for check in report.checks]) == (1, [False, True, True])
    report = load.run_load(smoke, model="unknown", **more)
    assert (report.exit_code, report.failures) == (2, {"status 404": 6}), "an unknown model makes the run invalid"


def test_locust_exits_by_our_verdict(engine: StartedProcess, tmp_path: Path) -> None:
    parameters = SCENARIOS["smoke"].defaults.model_copy(update={"users": 1, "requests": 1})
    # No request fails, and Locust itself judges only failures.
    plan = LoadPlan(scenario="smoke", parameters=parameters, models=("fake",), slo=Slo(ttft_p99_ms=0.01))
    out = tmp_path / "report.json"
    argv = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--host", engine.url]
    environ = {**os.environ, **environment(plan, ["k"], None, out)}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env=environ)
    assert (done.returncode, Report.from_json(out.read_bytes()).failures) == (1, {}), done.stderr


def test_locusts_own_page_with_the_same_file(engine: StartedProcess, tmp_path: Path) -> None:
    port = free_port()
    argv = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        "loadtests/locustfile.py",
        "--host",
        engine.url,
        "--model",
        "fake",
    ]
    argv += ["--web-host", "127.0.0.1", "--web-port", str(port)]
    running = start(argv, port, tmp_path / "log", APPLIANCE_API_KEY="k")
    try:
        page = http(running.url + "/").body.decode()
        assert "scenario" in page
        form = b"user_count=2&spawn_rate=2&scenario=multiturn&seed=3&model=fake"
        assert _form(running.url, "/swarm", form)["success"]

        def counted() -> dict[str, int]:
            stats = http(running.url + "/stats/requests").json["stats"]
            return {one["name"]: one["num_requests"] for one in stats if one["method"] == "multiturn"}

        wait_until(lambda: {"E2E", "TTFT", "TPOT", "max ITL"} <= counted().keys(), "Locust's table", 30)
        assert _form(running.url, "/stop", b"")["success"]
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(timeout=30)
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert not opens(port)


def _form(url: str, path: str, form: bytes) -> dict[str, Any]:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = send_request(url, path, method="POST", body=form, headers=headers, timeout_s=10)
    found: dict[str, Any] = response.json()
    return found
