"""Runs a plan: Locust in a process of its own, its samples followed while they come, scrapers beside it.

Drawing and scraping happen here, in another process than the load: they must not make the client late.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import StartError
from loadtests.collect import Collector
from loadtests.parameters import Plan
from loadtests.report import INTERRUPTED, Report, summarise
from loadtests.sample import DECODE, Beat, Line, Sample
from loadtests.scrape import Scraper, Source

LOCUSTFILE = Path(__file__).resolve().parent / "locustfile.py"
POLL_S = 0.25
GRACE_S = 10.0


@dataclass(slots=True)
class Progress:
    """What somebody who watches wants to know: all that ended so far, and the last beat."""

    plan: Plan
    began: float = 0.0
    ended: int = 0
    recent: list[Sample] = field(default_factory=list)
    """Samples of the last :data:`RECENT_S` seconds."""
    failures: dict[str, int] = field(default_factory=dict)
    beat: Beat | None = None

    def add(self, line: Line, now: float) -> None:
        """Take one line."""
        self.began = line.began or self.began
        self.beat = line.beat or self.beat
        if line.sample is not None:
            self.ended += 1
            self.recent.append(line.sample)
            if line.sample.cause:
                self.failures[line.sample.cause] = self.failures.get(line.sample.cause, 0) + 1
        while self.recent and self.recent[0].ended_at < now - RECENT_S:
            self.recent.pop(0)


RECENT_S = 10.0
Watcher = Callable[[Progress], None]


def command(plan: Plan, url: str) -> list[str]:
    """Locust's command line for ``plan``."""
    parameters = plan.parameters
    rate = parameters.users if parameters.ramp_s <= 0 else max(0.01, parameters.users / parameters.ramp_s)
    argv = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--host", url]
    argv += ["-u", str(parameters.users), "-r", str(rate), "--only-summary", "--stop-timeout", "5"]
    return [*argv, "--loglevel", "WARNING"]


def environment(plan: Plan, keys: Sequence[str], samples: Path | None, report: Path | None) -> dict[str, str]:
    """What Locust's process finds in its environment. Keys travel here, never in arguments or files."""
    table = {
        "APPLIANCE_LOADTEST": plan.model_dump_json(),
        "APPLIANCE_API_KEY": " ".join(keys),
        # Our own path, whole: under Nix the interpreter alone knows none of our packages.
        "PYTHONPATH": os.pathsep.join([str(LOCUSTFILE.parents[1]), *filter(None, sys.path)]),
    }
    if samples is not None:
        table["APPLIANCE_SAMPLES"] = str(samples)
    if report is not None:
        table["APPLIANCE_REPORT"] = str(report)
    return table


def run(
    plan: Plan,
    *,
    url: str,
    keys: Sequence[str],
    folder: Path,
    sources: Sequence[Source] = (),
    watch: Watcher | None = None,
) -> Report:
    """Run ``plan`` against ``url``; samples.jsonl and locust.log are left in ``folder``.

    Ctrl-C ends the load and gives a report that says it was interrupted. Raises :class:`StartError` when Locust
    itself fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples, log = folder / "samples.jsonl", folder / "locust.log"
    samples.write_bytes(b"")
    collected, progress = Collector(), Progress(plan)
    started = datetime.now(UTC)
    with _locust(plan, url, keys, samples, log) as process, Scraper(sources) as scraper:
        follow = _follow(samples)
        try:
            while process.poll() is None:
                _take(follow, collected, progress)
                if watch is not None:
                    watch(progress)
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            collected.notes.append(INTERRUPTED)
        _end(process)
        _take(follow, collected, progress)
        server = scraper.result(collected.began)
    if not collected.began:
        tail = " ".join(log.read_text(errors="replace").split())[-400:]
        raise StartError(f"Locust ended with code {process.returncode} before its first user; {log} says: {tail}")
    report = summarise(collected, plan)
    report.server = server.table
    report.notes += server.notes
    report.about = {"url": url, "started": started.isoformat(timespec="seconds"), "keys": str(len(keys))}
    return report


@contextmanager
def _locust(
    plan: Plan, url: str, keys: Sequence[str], samples: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    # A group of its own: Ctrl-C in the terminal comes to us alone, and we end the load in order. No session of its
    # own: the kernel's autogroups would let a busy session beside it (an engine on the CPU) make it 0.3 s late.
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(plan, url), stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0,
            env={**os.environ, **environment(plan, keys, samples, None)},
        )  # fmt: skip
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue


def _follow(path: Path) -> Iterator[Line | None]:
    """Whole lines of a file that grows; ``None`` where there is none for now."""
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


def _take(follow: Iterator[Line | None], collected: Collector, progress: Progress) -> None:
    now = time.monotonic()
    while (line := next(follow)) is not None:
        progress.add(line, now)
        collected.add(line)
