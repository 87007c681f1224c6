"""The measured start of an engine: refused while it serves, by a swap, by its unit, and after a failure."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import cli
from appliance.gateway import control_client
from tests.bench.test_whole_runs import BenchCommand
from tests.conftest import ROOT, RunningService, http, serving, wait_until
from tests.engines.test_start_stages import COMPILED, CPU
from tests.gateway.running.test_swap import ask, two_models

pytestmark = pytest.mark.timeout(400)

SYSTEMCTL = """#!/bin/sh
echo "$@" >> {folder}/calls
case "$1" in
  stop) kill -9 $(cat {folder}/pid) ;;
  start) [ -e {folder}/broken ] && exit 0
    {python} -P -m appliance.engines.mock --port {port} > /dev/null 2>&1 & echo $! > {folder}/pid ;;
esac
"""


def ready(service: RunningService) -> list[str]:
    found = control_client.status(service.data)["on_demand"].values()
    return [one["model"] for one in found if one["state"] == "ready"]


def measure(service: RunningService, *words: str) -> int:
    return cli.main(["models", "time", *words, "--config", str(service.config)])


def test_an_on_demand_engine_is_measured_and_the_model_of_before_serves_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with two_models(tmp_path / "swap") as service:
        assert ask(service, "a").status == 200
        assert measure(service, "eb") == 2
        assert "error: a serves and would be unloaded; add --stop" in capsys.readouterr().err
        assert ready(service) == ["a"]
        assert measure(service, "eb", "--stop", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["engine"] == "eb"
        assert found["stages"] is None
        assert 0 < found["unloaded"] < found["first_token"]
        assert found["serves"] <= found["first_token"]
        assert ready(service) == ["a"]
        # Its own model serves: it is unloaded by the other one, then measured.
        assert measure(service, "ea", "--stop") == 0
        assert "until the first token" in capsys.readouterr().out
        assert ready(service) == ["a"]


def test_after_a_failed_start_the_model_of_before_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with two_models(tmp_path / "fail", options={"fail-load": 1}) as service:
        assert ask(service, "a").status == 200
        assert measure(service, "eb", "--stop") == 1
        assert "b was not loaded: eb ended while it was loading" in capsys.readouterr().err
        assert ready(service) == ["a"]
        assert ask(service, "a").status == 200


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningService]:
    """A gateway whose engine is a unit of a pretended systemd, with a journal of vLLM."""
    folder = tmp_path / "systemd"
    folder.mkdir()
    with serving(tmp_path / "service", gateway={"engine_control": "systemd"}) as service:
        (folder / "pid").write_text(str(service.engine.process.pid))
        texts = {
            "systemctl": SYSTEMCTL.format(folder=folder, python=sys.executable, port=service.engine.port),
            "journalctl": f"#!/bin/sh\ncat {folder}/journal\n",
        }
        for name, text in texts.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        (folder / "journal").write_text(f"{CPU.splitlines()[0]}\n{COMPILED}")
        try:
            yield service
        finally:
            if (folder / "calls").exists() and not (folder / "broken").exists():
                os.kill(int((folder / "pid").read_text()), signal.SIGKILL)


def test_a_resident_engine_is_drained_restarted_and_measured_with_its_stages(
    unit: RunningService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_until(lambda: http(f"{unit.url}/ready").status == 200, "the gateway serves", 30)
    assert measure(unit, "chat") == 2
    assert "engine chat serves; add --stop to drain and restart it" in capsys.readouterr().err
    assert not (tmp_path / "systemd/calls").exists()
    assert measure(unit, "chat", "--stop", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stages"]["weights"] == 4.25
    assert found["stages"]["compile"] == 41.2
    assert found["first_token"] > 0
    calls = (tmp_path / "systemd/calls").read_text().splitlines()
    assert calls == ["stop appliance-engine-chat.service", "start --no-block appliance-engine-chat.service"]
    assert control_client.status(unit.data)["engines"]["chat"]["draining"] is None
    wait_until(lambda: http(f"{unit.url}/ready").status == 200, "the gateway serves again", 30)


def test_a_unit_that_does_not_start_is_an_error_and_its_drain_ends(
    unit: RunningService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "systemd/broken").touch()
    site = json.loads(unit.config.read_text())
    site["engines"]["chat"]["start_timeout_s"] = 1
    unit.config.write_text(json.dumps(site))
    assert measure(unit, "chat", "--stop") == 1
    assert "the engine was not ready within 1 s" in capsys.readouterr().err
    assert control_client.status(unit.data)["engines"]["chat"]["draining"] is None


GRID = ("--batch", "", "--input", "", "--context", "", "--cold-start")


def test_a_benchmark_has_the_cold_start_of_a_resident_engine(unit: RunningService, tmp_path: Path) -> None:
    wait_until(lambda: http(f"{unit.url}/ready").status == 200, "the gateway serves", 30)
    bench = BenchCommand(unit, tmp_path)
    assert bench.run(*GRID) == 0, bench.printed
    calls = (tmp_path / "systemd/calls").read_text().splitlines()
    assert calls == ["stop appliance-engine-chat.service", "start --no-block appliance-engine-chat.service"]
    assert control_client.status(unit.data)["engines"]["chat"]["draining"] is None
    (row,) = csv.DictReader((bench.out / "starts.csv").read_text().splitlines())
    assert (row["kind"], row["model"], row["weights_s"], row["compile_s"]) == ("cold", "fake", "4.250", "41.200")
    assert float(row["first_token_s"]) > 0
    assert "| fake | - | 4.25 | 41.20 |" in (bench.out / "bench.md").read_text()
    assert "Cold starts" in (bench.out / "bench.html").read_text()
    # A second run has nothing to measure.
    assert bench.run(*GRID) == 0
    assert (tmp_path / "systemd/calls").read_text().splitlines() == calls
    wait_until(lambda: http(f"{unit.url}/ready").status == 200, "the gateway serves again", 30)


def test_a_benchmark_of_an_on_demand_engine_restores_the_model_of_before(tmp_path: Path) -> None:
    with two_models(tmp_path / "swap") as service:
        assert ask(service, "b").status == 200
        bench = BenchCommand(service, tmp_path)
        assert bench.run(*GRID, "--model", "a") == 0, bench.printed
        assert ready(service) == ["b"]
        assert "cold start of a: unloaded" in bench.printed


def test_a_start_that_cannot_be_measured_is_refused_before_anything_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with two_models(tmp_path / "swap", first={"sleep": True}) as service:
        assert ask(service, "a").status == 200
        monkeypatch.setenv("APPLIANCE_API_KEY", service.key)
        words = ["bench", "--config", str(service.config), "--out", str(tmp_path / "out"), *GRID, "--model", "a"]
        assert cli.main(words) == 2
        assert "engine ea sleeps between swaps; `appliance bench --swap`" in capsys.readouterr().err
        assert ready(service) == ["a"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "models time: name an engine, or its log with --log"),
        (("chat", "--log", "-"), "models time: name an engine, or its log with --log"),
        (("chta",), "no engine is called 'chta'"),
    ],
)
def test_invalid_words_are_one_line(
    service: RunningService, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert measure(service, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
