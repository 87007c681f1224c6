"""A signal ends a long run at any time: it leaves no process and no folder, but a report."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import termios
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.smoketest import report
from appliance.smoketest.run import run_smoke_test
from appliance.system import stopping
from appliance.system.stopping import Stop, listening
from tests.conftest import RunningService, a_site, serving, wait_until
from tests.fakes.witness import MANY, LongRun, long_run, witness
from tests.ports import free_port
from tests.smoketest.conftest import HERE, SMOKE

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
LOADING = ("--users", "3", "--duration", "1h", "--warmup", "0", "--client-lag-ms", "5000")
ENDLESS = {
    "list": LOADING,
    "preflight": LOADING,
    "sizing": LOADING,
    "starting": LOADING,
    "ramp": (*LOADING, "--users", "50", "--ramp", "1h"),
    "steady": LOADING,
    "report": ("--users", "2", "--requests", "3", "--client-lag-ms", "5000"),
}
"""Options of a run for each moment: a load that lasts an hour, or one whose report is held back."""
LATE = ("starting", "ramp", "steady", "report")
TABLE = [
    *itertools.product(["imports"], [INT, TERM, HUP]),
    # Each of the others with one signal; a steady load also gets SIGHUP (below) and SIGINT (test_loadtest.py).
    *zip(["list", "preflight", "sizing"], [HUP, INT, TERM], strict=True),
    *zip(["starting", "ramp", "report"], [TERM, HUP, INT], strict=True),
    ("steady", TERM),
]


def words(url: str, moment: str, folder: Path, *more: object) -> list[object]:
    named = () if moment == "list" else ("--model", "fake")
    return ["loadtest", "--url", url, *named, *ENDLESS.get(moment, LOADING), "--json", folder / "json", *more]


def come_to(run: LongRun, gateway: Any, moment: str) -> None:
    """Wait until ``run`` is at ``moment``, as far as that is visible from outside."""
    if moment == "imports":
        run.until(run.is_quiet, "the program has begun")
    elif moment == "starting":
        run.until(lambda: run.load() is not None, "Locust runs")
    elif moment == "ramp":
        run.until(gateway.came_to("load", 5), "the first user's requests")
    elif moment == "steady":
        run.until(gateway.came_to("load", MANY), "a steady load")
    else:
        run.until(gateway.came_to(moment), moment)


def report_of(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "json").read_text())
    return table


@pytest.mark.parametrize(("moment", "number"), TABLE)
def test_a_signal_ends_a_load_test(moment: str, number: signal.Signals, tmp_path: Path) -> None:
    held = moment if moment in ("list", "preflight", "sizing", "report") else ""
    with (
        witness(held, last_of=6 if moment == "report" else None) as gateway,
        long_run(tmp_path, *words(gateway.url, moment, tmp_path)) as run,
    ):
        come_to(run, gateway, moment)
        run.process.send_signal(number)
        code = run.end()
        if moment == "imports":
            assert (code, run.output) == (-number, ""), "nothing was begun: the signal itself ends it, in silence"
            return
        assert code == 2, run.output
        report = report_of(tmp_path)
        assert report["verdict"] == "invalid"
        assert report["invalid"][0] == f"the run was interrupted before its end by {number.name}"
        assert f"INVALID: the run was interrupted before its end by {number.name}" in run.output
        measured = {"steady": MANY - 3, "report": 6}.get(moment, 0)
        assert report["requests"] >= measured
        assert (report["requests"] > 0) is (moment in LATE[1:])


def test_sigint_counts_if_it_was_inherited_as_ignored(tmp_path: Path) -> None:
    with witness("list") as gateway:
        with long_run(tmp_path, *words(gateway.url, "list", tmp_path), ignored=(INT, TERM)) as run:
            come_to(run, gateway, "list")
            run.process.send_signal(INT)
            assert run.end() == 2, run.output
        assert report_of(tmp_path)["invalid"][0].endswith("by SIGINT")


def test_nohup_is_respected_and_a_keyless_server_needs_no_key(tmp_path: Path) -> None:
    """A SIGHUP that was inherited as ignored stays ignored; a run without a key sends none."""
    asked = ("--users", "1", "--requests", "2", "--client-lag-ms", "5000")
    with (
        witness("list") as gateway,
        long_run(
            tmp_path, "loadtest", "--url", gateway.url, *asked, "--json", tmp_path / "json",
            ignored=(HUP,), APPLIANCE_API_KEY="",
        ) as run,
    ):  # fmt: skip
        come_to(run, gateway, "list")
        run.process.send_signal(HUP)
        gateway.released.set()
        assert run.end() == 0, run.output
        assert report_of(tmp_path)["about"]["keys"] == "0"
        assert not any("authorization" in headers for headers in gateway.headers)


@pytest.mark.parametrize("moment", ["starting", "steady"])
def test_the_load_of_a_killed_load_test_ends(moment: str, tmp_path: Path) -> None:
    with witness() as gateway, long_run(tmp_path, *words(gateway.url, moment, tmp_path)) as run:
        come_to(run, gateway, moment)
        run.process.kill()
        run.process.wait()
        wait_until(lambda: not run.processes(), "the load ends with its parent")


def test_a_killed_load_generator_makes_the_run_invalid(tmp_path: Path) -> None:
    with witness() as gateway, long_run(tmp_path, *words(gateway.url, "steady", tmp_path)) as run:
        come_to(run, gateway, "steady")
        pid = run.load()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert run.end() == 2, run.output
        report = report_of(tmp_path)
        assert report["invalid"][0] == "the run was interrupted before its end: Locust ended with code -9"
        assert report["requests"] >= MANY - 3


def test_a_pipe_without_a_reader_does_not_hold_a_stopped_run(tmp_path: Path) -> None:
    """The report is larger than the pipe; a signal ends the wait, and the other files agree with the exit code."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    try:
        asked = words("", "report", tmp_path, "--html", tmp_path / "pipe", "--junit", tmp_path / "junit")
        with witness() as gateway:
            asked[2] = gateway.url
            with long_run(tmp_path, *asked) as run:
                run.until(
                    lambda: (tmp_path / "junit").exists() and (tmp_path / "junit").stat().st_size > 0, "junit"
                )
                run.until(lambda: _fills(reader), "the page fills the pipe")
                run.process.send_signal(TERM)
                assert run.end() == 2, run.output
        assert report_of(tmp_path)["invalid"]
        assert ET.parse(tmp_path / "junit").getroot().get("errors") == "4"
    finally:
        os.close(reader)


def _fills(reader: int) -> bool:
    waiting = bytearray(4)
    fcntl.ioctl(reader, termios.FIONREAD, waiting)
    return int.from_bytes(waiting, "little") > 0


def test_output_without_a_reader_changes_no_verdict(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with witness() as gateway:
        asked = words(gateway.url, "report", tmp_path)
        with long_run(tmp_path, *asked, stdout=writer) as run:
            os.close(writer)
            assert run.end() == 0, run.output
    assert report_of(tmp_path)["verdict"] == "pass"


def test_a_closed_terminal_ends_the_run_with_its_report(tmp_path: Path) -> None:
    """After the kernel's SIGHUP, every write to standard output fails."""
    terminal, own = os.openpty()
    with witness() as gateway, long_run(tmp_path, *words(gateway.url, "steady", tmp_path), stdout=own) as run:
        os.close(own)
        come_to(run, gateway, "steady")
        os.close(terminal)
        run.process.send_signal(HUP)
        assert run.end() == 2, run.output
    assert report_of(tmp_path)["invalid"][0].endswith("by SIGHUP")


def test_a_stopped_smoke_test_writes_its_report(tmp_path: Path) -> None:
    with witness("load") as gateway:
        site = tmp_path / "site.json"
        table = a_site(gateway.server_port, free_port(), tmp_path / "data")
        site.write_text(json.dumps(table))
        asked = ("smoke", "--config", site, "--json", tmp_path / "json")
        with long_run(tmp_path, *asked, ignored=(INT,), APPLIANCE_API_KEY="k") as run:
            run.until(gateway.came_to("load"), "the smoke test's load")
            run.process.send_signal(INT)
            assert run.end() == 2, run.output
    assert report_of(tmp_path)["invalid"][0] == "the run was interrupted before its end by SIGINT"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(tmp_path_factory.mktemp("stopped"), smoke=SMOKE) as service:
        yield load(service.config), service


@pytest.mark.parametrize("at", ["token chat", "gateway takes a key"])
def test_the_report_of_a_stopped_smoke_test_is_kept_and_not_passed(
    running: tuple[Site, RunningService], at: str, tmp_path: Path
) -> None:
    site, service = running
    said: list[str] = []

    def say(step: report.SmokeStep) -> None:
        said.append(step.name)
        if step.name == at:
            os.kill(os.getpid(), TERM)

    with listening() as stop:
        run_smoke_test(
            site, service.data, key=service.key, folder=tmp_path / "8", system=HERE, on_step=say, stop=stop
        )
    kept = report.latest(tmp_path, HERE.running.generation)
    assert kept is not None
    assert not kept.passed
    assert kept.steps[-1].sentence == "interrupted: SIGTERM ended the test before its end"
    assert said[-2:] == [at, "interrupted"], "no further step is begun"


def test_a_burst_of_signals_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a terminal closes, kernel and shell both send SIGHUP: the second one must not prevent the report."""
    with listening() as stop:
        for number in (INT, INT, TERM):
            os.kill(os.getpid(), number)
        assert (stop.count, stop.reason) == (1, "SIGINT")
        with stop.until(2):
            pass
        # The next signal does not belong to the burst.
        monkeypatch.setattr(stopping, "BURST_S", 0.0)
        os.kill(os.getpid(), TERM)
        assert (stop.count, stop.reason) == (2, "SIGINT")


def test_another_thread_ends_a_wait() -> None:
    stop = Stop()
    assert not stop.wait(0)
    stop.request("it is over")
    assert stop.wait(60)
