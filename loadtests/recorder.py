"""Records the samples of the load process, and its own CPU share and lag."""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO

from loadtests.collect import Collector
from loadtests.parameters import Parameters
from loadtests.sample import Heartbeat, Sample, SampleLine, encode

SLEEP_S = 0.02
"""Sleep of the watcher; no greenlet could read its socket during the time that it oversleeps."""


class Recorder:
    """Adds each sample to the collector and, as a line, to a file that another process can follow."""

    def __init__(self, parameters: Parameters, path: Path | None) -> None:
        self.collector = Collector()
        self.began = 0.0
        self.in_flight = 0
        self.users = 0
        self._parameters = parameters
        self._file: BinaryIO | None = path.open("ab", buffering=0) if path is not None else None
        self._cpu = time.process_time()
        self._last_heartbeat = time.monotonic()
        self._lag = 0.0

    def begin(self) -> None:
        """Record the start of the first user; later calls change nothing."""
        if not self.began:
            self.began = self._last_heartbeat = time.monotonic()
            self._cpu = time.process_time()
            self._write(SampleLine(began=self.began))

    def end(self) -> None:
        """Record that the load is complete."""
        line = SampleLine(ended=time.monotonic())
        self._write(line)
        self.collector.add(line)

    @property
    def over(self) -> bool:
        """Whether the duration of the load is over."""
        duration = self._parameters.duration_s
        return duration is not None and bool(self.began) and time.monotonic() >= self.began + duration

    def warming_up(self, at: float) -> bool:
        """Return whether a request at the time ``at`` is part of the warm-up."""
        return at < self.began + self._parameters.warmup

    def record(self, sample: Sample) -> None:
        """Record one sample."""
        self._write(SampleLine(sample=sample))
        self.collector.add(SampleLine(sample=sample))

    def note(self, text: str) -> None:
        """Record a remark on the run as a whole."""
        self._write(SampleLine(note=text))
        self.collector.add(SampleLine(note=text))

    def slept(self, wanted_s: float, took_s: float) -> None:
        """Record a sleep of the watcher, in seconds; once a second this records a heartbeat."""
        self._lag = max(self._lag, took_s - wanted_s)
        now = time.monotonic()
        if now - self._last_heartbeat < 1.0 or not self.began:
            return
        cpu = time.process_time()
        heartbeat = Heartbeat(
            now,
            (cpu - self._cpu) / (now - self._last_heartbeat),
            lag_s=self._lag,
            in_flight=self.in_flight,
            users=self.users,
        )
        self._cpu, self._last_heartbeat, self._lag = cpu, now, 0.0
        self._write(SampleLine(beat=heartbeat))
        self.collector.add(SampleLine(beat=heartbeat))

    def _write(self, line: SampleLine) -> None:
        if self._file is not None:
            self._file.write(encode(line))
