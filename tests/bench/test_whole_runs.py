"""Whole runs of ``appliance bench``: a gateway, a mock engine, a pretended card, and the agent of its limit."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance import cli
from appliance.contract.load import load
from appliance.gateway import control_client
from appliance.planner.from_site import hardware_of
from appliance.planner.measured import read_measured
from appliance.watch.card_power import CardPower, power_ranges
from tests.bench.test_tables import CARD, NAME
from tests.conftest import ROOT, RunningService, head, serving, start_mock, wait_until
from tests.gateway.running.test_swap import two_models

pytestmark = pytest.mark.timeout(400)

NVIDIA_SMI = """#!/bin/sh
case "$*" in
  "-i 0 -pl "*) echo "$4" > {folder}/limit ;;
  *index,name,driver*) echo "0, Pretended, 580.1, $(cat {folder}/heat), $(cat {folder}/limit)" ;;
  *power.draw*) echo "0, 60, 300.0, 90, 0x0" ;;
  *) exit 9 ;;
esac
"""


@dataclass
class PretendedCard:
    """The pretended card: its power limit and its temperature are files."""

    folder: Path

    @property
    def limit(self) -> int:
        return int((self.folder / "limit").read_text() or 0)

    def heat(self, degrees: int) -> None:
        (self.folder / "heat.new").write_text(str(degrees))
        (self.folder / "heat.new").rename(self.folder / "heat")


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendedCard:
    folder = tmp_path / "card"
    folder.mkdir()
    (folder / "limit").write_text("450")
    (folder / "heat").write_text("60")
    program = folder / "nvidia-smi"
    program.write_text(NVIDIA_SMI.format(folder=folder))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return PretendedCard(folder)


@contextmanager
def agent(config: Path, wishes: Path) -> Iterator[None]:
    """The part of an agent of the host that applies power limits."""
    power = CardPower(power_ranges(load(config).hosts["here"].gpus), wishes)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            power.tick()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def on_a_card(folder: Path) -> Iterator[RunningService]:
    """A gateway before an engine that the site calls vLLM on a card."""
    engine = start_mock(folder / "vllm.log", "--model", "chat", "--tokens", "16", "--itl-ms", "60")
    one = {"kind": "vllm", "host": "here", "model": "chat", "gpus": [0], "context": 4096, "concurrency": 16}
    gpus = [{"index": 0, "model": CARD, "memory_mib": 97887, "power_limit_w": 450}]
    site = {
        "hosts": {"here": {"memory_gib": 128, "gpus": gpus}},
        "models": {"chat": {"source": NAME, "revision": "0" * 40}},
        "engines": {"chat": one | {"port": engine.port, "gpu_memory_utilization": 0.9}},
    }
    try:
        with serving(folder / "gateway", **site) as service:
            yield service
    finally:
        engine.stop()


@contextmanager
def user_stream(service: RunningService) -> Iterator[None]:
    """A stream of a user, which is open until the end of the block."""
    text = "fake: tokens=100000 itl_ms=20"
    body = json.dumps({"model": "chat", "stream": True, "messages": [{"role": "user", "content": text}]}).encode()
    with socket.create_connection(("127.0.0.1", service.gateway.port), timeout=30) as connection:
        connection.sendall(head(service, f"content-length: {len(body)}", "content-type: application/json") + body)
        assert connection.recv(12) == b"HTTP/1.1 200"
        yield


class BenchCommand:
    """The command against ``service``, with the results in ``out``."""

    def __init__(self, service: RunningService, folder: Path) -> None:
        self.service = service
        self.out = folder / "out"
        self.wishes = folder / "wishes"
        self.log = folder / "bench.log"

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "appliance", "bench", "--config", str(self.service.config)]
        argv += ["--out", str(self.out), "--wishes", str(self.wishes), "--power-run", str(self.out / "none")]
        argv += ["--quiet", "0s", "--client-lag", "100000", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "APPLIANCE_API_KEY": self.service.key}
        with self.log.open("ab") as output:
            return subprocess.Popen(argv, stdout=output, stderr=output, env=environment)

    def run(self, *options: str) -> int:
        return self.start(*options).wait(300)

    @property
    def printed(self) -> str:
        return self.log.read_text()

    @property
    def lines(self) -> int:
        file = self.out / "results.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0


def test_a_killed_run_leaves_no_limit_and_the_next_one_continues(tmp_path: Path, card: PretendedCard) -> None:
    grid = ("--batch", "1", "--input", "64", "--context", "", "--output", "16", "--power", "300,400")
    with on_a_card(tmp_path) as service:
        bench = BenchCommand(service, tmp_path)
        with agent(service.config, bench.wishes):
            first = bench.start(*grid)
            try:
                wait_until(lambda: bench.lines == 2 and card.limit == 300, "the second cell begins", 200)
            finally:
                first.send_signal(signal.SIGKILL)
                first.wait(30)
            wait_until(lambda: card.limit == 450, "the agent restores the limit of the site", 60)
            assert bench.run(*grid) == 0
            wait_until(lambda: card.limit == 450, "the agent restores the limit of the site", 60)
        assert "load: 1 x 64 tokens, 400 W" not in bench.printed.split("300 W")[-1]
        site = load(service.config)
    measured = read_measured(bench.out / "bench.csv", hardware_of(site), {NAME})
    assert measured.unused == ()
    assert len(measured.points["here"]) == 2
    rows = (bench.out / "bench.csv").read_text().splitlines()
    assert len(rows) == 3
    # A request takes 1 s, and a cell has 16 of them: a sample of the draw every two seconds, three are necessary.
    assert float(rows[1].rsplit(",", 1)[1]) > 0
    assert "<figure>" in (bench.out / "bench.html").read_text()


def test_the_load_of_a_user_and_a_hot_card_stop_it(tmp_path: Path, card: PretendedCard) -> None:
    grid = ("--batch", "1", "--input", "64", "--context", "", "--output", "1000")
    with on_a_card(tmp_path) as service:
        bench = BenchCommand(service, tmp_path)
        card.heat(90)
        assert bench.run(*grid, "--wait", "0s") == 1
        assert "ended early: a card has 90 °C, the limit is 83; 1 cells are left" in bench.printed
        assert bench.lines == 1
        card.heat(60)

        # Its responses of 20 s each last longer than the test.
        running = bench.start(*grid)
        try:
            wait_until(lambda: "measuring" in bench.printed, "the cell begins", 90)
            with user_stream(service), user_stream(service), user_stream(service):
                wait_until(lambda: "stopped load: 1 x 64 tokens: users have" in bench.printed, "the load ends", 60)
        finally:
            running.send_signal(signal.SIGTERM)
            assert running.wait(60) == 1
        assert "SIGTERM ended the run" in bench.printed
        assert bench.lines == 1


def test_swaps_are_measured_and_the_model_of_before_serves_again(tmp_path: Path) -> None:
    with two_models(tmp_path / "swap", first={"sleep": True}, sleep=True) as service:
        # Not the model of the last cell.
        control_client.swap(service.data, "a")

        def states() -> dict[str, str]:
            return {one["model"]: one["state"] for one in control_client.status(service.data)["on_demand"].values()}

        wait_until(lambda: states()["a"] == "ready", "a is loaded", 60)
        bench = BenchCommand(service, tmp_path)
        grid = ("--batch", "", "--input", "", "--context", "", "--model", "a", "--swap")
        assert bench.run(*grid) == 0, bench.printed
        assert states()["a"] == "ready"
    text = (bench.out / "bench.md").read_text()
    assert "## Swaps" in text
    found = [
        json.loads(line.rpartition(b" ")[0]) for line in (bench.out / "results.jsonl").read_bytes().splitlines()
    ]
    assert [one["cell"]["model"] for one in found[1:]] == ["a", "b"]
    assert all(one["figures"]["stages"]["total"] > 0 for one in found[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--limit", "2h"), "--limit 2h: a run takes an hour at most"),
        (("--batch", "0"), "--batch: '0' is not a whole number"),
        (("--window", "2-5"), "--window '2-5': write begin and end"),
        (("--share", "0"), "--share 0: use a number above 0"),
        (("--model", "nothing"), "--model nothing: a benchmark needs a model that exactly one engine"),
        (("--input", "9999", "--context", ""), "no cell is left: input 9999"),
        (("--power", "300"), "--power: this engine uses no cards"),
        (("--swap",), "--swap: the site needs two models"),
    ],
)
def test_invalid_options_are_one_line(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    options: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("APPLIANCE_API_KEY", service.key)
    argv = ["bench", "--config", str(service.config), "--out", str(tmp_path / "out"), *options]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
