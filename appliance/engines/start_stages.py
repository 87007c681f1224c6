"""The stages of a start of vLLM, in seconds, from the engine's own log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

BANNER = re.compile(r"\] .*\bversion \d+\.\d+")
"""The line with which vLLM begins a start."""

READY = "Starting vLLM server on"
STAMP = re.compile(r"\b(?:INFO|WARNING|ERROR) (\d\d-\d\d \d\d:\d\d:\d\d) \[")

WEIGHTS = re.compile(r"Loading weights took ([\d.]+) seconds")
COMPILE = re.compile(r"torch\.compile took ([\d.]+) s in total")
GRAPHS = re.compile(r"Graph capturing finished in ([\d.]+) secs")
INIT = re.compile(r"init engine \(profile, create kv cache, warmup model\) took ([\d.]+) s")


@dataclass(frozen=True, slots=True)
class StartStages:
    """Seconds of the stages of one start; ``None`` for a stage that the log lacks.

    ``init`` contains ``compile`` and ``graphs``, ``total`` contains all. Of several workers, the slowest counts.
    """

    weights: float | None
    compile: float | None
    graphs: float | None
    init: float | None
    total: float | None


def start_stages(log: str) -> StartStages | None:
    """Return the stages of the last start in ``log``; ``None`` if it has none.

    Example::

        start_stages(Path("var/log/engine-chat.log").read_text()).weights
    """
    lines = log.splitlines()
    begins = [number for number, line in enumerate(lines) if BANNER.search(line)]
    if not begins:
        return None
    start = lines[begins[-1] :]
    return StartStages(
        weights=_slowest(WEIGHTS, start),
        compile=_slowest(COMPILE, start),
        graphs=_slowest(GRAPHS, start),
        init=_slowest(INIT, start),
        total=_until_ready(start),
    )


def _slowest(pattern: re.Pattern[str], lines: list[str]) -> float | None:
    return max((float(match[1]) for line in lines if (match := pattern.search(line))), default=None)


def _until_ready(lines: list[str]) -> float | None:
    begin = next((at for line in lines if (at := _time_of(line))), None)
    end = next((at for line in lines if READY in line and (at := _time_of(line))), None)
    if begin is None or end is None:
        return None
    # The stamps have no year: a start over New Year ends before it began.
    seconds = (end - begin).total_seconds()
    return seconds if seconds >= 0 else seconds + 366 * 86400


def _time_of(line: str) -> datetime | None:
    match = STAMP.search(line)
    return datetime.strptime(f"2000-{match[1]}", "%Y-%m-%d %H:%M:%S") if match else None  # noqa: DTZ007
