"""Progress of a transfer: a bar on a terminal, else a line for each file and one every ten seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from appliance.models.progress import TransferRate, size_text
from appliance.models.transfer import TransferWatcher
from appliance.render.terminal import Console

LINE_EVERY_S = 10.0
"""Time between two lines of progress, in seconds."""


@contextmanager
def shown_transfer() -> Iterator[TransferWatcher]:
    """Yield the watcher for standard output."""
    console = Console()
    if not console.is_terminal:
        yield _TransferLines()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, speed_estimate_period=30.0) as progress:
        yield _TransferBar(progress)


class _TransferLines:
    """Prints lines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._printed = time.monotonic()
        self._rate = TransferRate(total=0, done=0, now=self._printed)

    def begin(self, total: int, present: int) -> None:
        self._rate = TransferRate(total=total, done=present, now=time.monotonic())
        if total:
            print(f"{size_text(total - present)} of {size_text(total)} to transfer", flush=True)

    def start_file(self, line: str) -> None:
        print(line, flush=True)

    def advance(self, count: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._rate.add(count, now)
            if now - self._printed >= LINE_EVERY_S:
                self._printed = now
                print(self._rate.text(now), flush=True)


class _TransferBar:
    """Draws a bar; rich locks it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("files")

    def begin(self, total: int, present: int) -> None:
        self._progress.reset(self._task, total=total, completed=present)

    def start_file(self, line: str) -> None:
        self._progress.update(self._task, description=line.partition(",")[0][-48:])

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)
