"""Runs a plan: Locust in a process of its own, whose samples are read during the run, and the scraper.

Drawing and scraping are done here, in another process than the load, so that they do not delay the client.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import UnprovenError
from appliance.system.proxy import route
from appliance.system.stopping import Stop
from loadtests.collect import Collector
from loadtests.parameters import LoadPlan
from loadtests.report import INTERRUPTED, Report, summarise
from loadtests.sample import DECODE, Heartbeat, Sample, SampleLine
from loadtests.scrape import Scraper, Source

LOCUSTFILE = Path(__file__).resolve().parent / "locustfile.py"
ROOT = LOCUSTFILE.parents[1]
POLL_S = 0.25


@dataclass(slots=True)
class Progress:
    """The state of a run for its display: the requests so far and the last heartbeat."""

    plan: LoadPlan
    began: float = 0.0
    ended: int = 0
    recent: list[Sample] = field(default_factory=list)
    """Samples of the last :data:`RECENT_S` seconds."""
    failures: dict[str, int] = field(default_factory=dict)
    heartbeat: Heartbeat | None = None

    def add(self, line: SampleLine, now: float) -> None:
        """Add one line of the samples file."""
        self.began = line.began or self.began
        self.heartbeat = line.beat or self.heartbeat
        if line.sample is not None:
            self.ended += 1
            self.recent.append(line.sample)
            if line.sample.cause:
                self.failures[line.sample.cause] = self.failures.get(line.sample.cause, 0) + 1
        while self.recent and self.recent[0].ended_at < now - RECENT_S:
            self.recent.pop(0)


RECENT_S = 10.0
OnProgress = Callable[[Progress], None]


FOREIGN = ("LOCUST_", "APPLIANCE_", "GEVENT_")
"""Prefixes of variables that Locust, the locustfile and gevent read: only those of the plan are passed on."""


def command(plan: LoadPlan, url: str) -> list[str]:
    """Return Locust's command line for ``plan``, for a process that ends with this one."""
    parameters = plan.parameters
    rate = parameters.users if parameters.ramp_s <= 0 else max(0.01, parameters.users / parameters.ramp_s)
    argv = [sys.executable, "-P", "-m", "loadtests.parent_death", str(os.getpid()), "locust"]
    argv += ["-f", str(LOCUSTFILE), "--headless", "--host", url]
    argv += ["-u", str(parameters.users), "-r", str(rate), "--only-summary", "--stop-timeout", "5"]
    return [*argv, "--loglevel", "WARNING"]


def environment(plan: LoadPlan, keys: Sequence[str], samples: Path | None, report: Path | None) -> dict[str, str]:
    """Return the variables for Locust's process. Keys are passed here, never in arguments or files."""
    table = {
        "APPLIANCE_LOADTEST": plan.model_dump_json(),
        "APPLIANCE_API_KEY": " ".join(keys),
        # The whole path of this process: under Nix the interpreter alone finds none of the packages.
        "PYTHONPATH": os.pathsep.join(str(Path(one).absolute()) for one in [str(ROOT), *sys.path] if one),
    }
    if samples is not None:
        table["APPLIANCE_SAMPLES"] = str(samples)
    if report is not None:
        table["APPLIANCE_REPORT"] = str(report)
    return table


def _inherited(folder: Path, url: str) -> dict[str, str]:
    """Return this process's environment without settings of Locust, also those of a locust.conf (by HOME)."""
    table = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    # Locust runs in ``folder``: a relative path would name another file.
    paths = {name: str(Path(table[name]).absolute()) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in table}
    # The load uses the same route as all other requests.
    direct = {"NO_PROXY": "*", "no_proxy": "*"} if route(url).proxy is None else {}
    return table | paths | direct | {"HOME": str(folder)}


def run(
    plan: LoadPlan,
    *,
    url: str,
    keys: Sequence[str],
    folder: Path,
    stop: Stop,
    sources: Sequence[Source] = (),
    on_progress: OnProgress | None = None,
    log: Path | None = None,
) -> Report:
    """Run ``plan`` against ``url`` until its end or until ``stop`` requests its end.

    ``folder`` holds samples.jsonl, and locust.log unless another ``log`` is given. The report of a stopped run has
    the requests so far and is marked as interrupted. Raises :class:`UnprovenError` if Locust itself fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples, output = folder / "samples.jsonl", log or folder / "locust.log"
    samples.write_bytes(b"")
    collected, progress = Collector(), Progress(plan)
    started = datetime.now(UTC)
    with _locust(plan, url, keys=keys, samples=samples, log=output) as process, Scraper(sources, stop) as scraper:
        lines = _follow(samples)
        while process.poll() is None and not stop.wait(POLL_S):
            _read_lines(lines, collected, progress)
            if on_progress is not None:
                # It prints, and a slow reader of the output can block it.
                with stop.until(2):
                    on_progress(progress)
        _end(process)
        _read_lines(lines, collected, progress)
        server = scraper.result(collected.began)
    if not stop.requested and not collected.began:
        tail = " ".join(output.read_text(errors="replace").split())[-400:]
        hint = f"; its log is {log}" if log is not None else ""
        raise UnprovenError(f"Locust ended with code {process.returncode} before its first user: {tail}{hint}")
    if stop.requested:
        collected.notes.insert(0, f"{INTERRUPTED} by {stop.reason}")
    elif not collected.ended and INTERRUPTED not in collected.notes:
        collected.notes.append(f"{INTERRUPTED}: Locust ended with code {process.returncode}")
    report = summarise(collected, plan)
    report.server = server.table
    report.notes += server.notes
    count = sum(bool(key) for key in keys)
    report.about = {"url": url, "started": started.isoformat(timespec="seconds"), "keys": str(count)}
    return report


@contextmanager
def _locust(
    plan: LoadPlan, url: str, keys: Sequence[str], samples: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    # A process group of its own: Ctrl-C in the terminal reaches this process alone, which ends the load. Not a
    # session of its own: with the kernel's autogroups another busy session (an engine on the CPU) would delay it by
    # 0.3 s.
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(plan, url),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
            env=_inherited(samples.parent, url) | environment(plan, keys, samples=samples, report=None),
            cwd=samples.parent,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    # SIGKILL, not SIGTERM: Locust can miss SIGTERM while it starts, and later it drains requests for seconds.
    # Nothing is lost, since each sample is written to the file as soon as its request has ended.
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _follow(path: Path) -> Iterator[SampleLine | None]:
    """Yield the complete lines of a growing file; ``None`` if there is none at present."""
    with path.open("rb") as file:
        rest = b""
        while True:
            piece = file.read(1 << 20)
            if not piece:
                yield None
                continue
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield DECODE.decode(line)


def _read_lines(lines: Iterator[SampleLine | None], collected: Collector, progress: Progress) -> None:
    now = time.monotonic()
    while (line := next(lines)) is not None:
        progress.add(line, now)
        collected.add(line)
