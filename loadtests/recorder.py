"""Where the load process puts its samples, and how it watches itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO

from loadtests.collect import Collector
from loadtests.parameters import Parameters
from loadtests.sample import Heartbeat, Sample, SampleLine, encode

SLEEP_S = 0.02
"""The watch's sleep: what it oversleeps is the time for which no greenlet could have read its socket."""


class Recorder:
    """Samples as they end: into the collector, and a line each into a file that somebody may follow."""

    def __init__(self, parameters: Parameters, path: Path | None) -> None:
        self.collector = Collector()
        self.began = 0.0
        self.in_flight = 0
        self.users = 0
        self._parameters = parameters
        self._file: BinaryIO | None = path.open("ab", buffering=0) if path is not None else None
        self._cpu = time.process_time()
        self._beaten = time.monotonic()
        self._lag = 0.0

    def begin(self) -> None:
        """The first user begins now; later calls change nothing."""
        if not self.began:
            self.began = self._beaten = time.monotonic()
            self._cpu = time.process_time()
            self._write(SampleLine(began=self.began))

    def end(self) -> None:
        """Note that the load has ended by itself."""
        line = SampleLine(ended=time.monotonic())
        self._write(line)
        self.collector.add(line)

    @property
    def over(self) -> bool:
        """Whether the time for sending is over."""
        duration = self._parameters.duration_s
        return duration is not None and bool(self.began) and time.monotonic() >= self.began + duration

    def warming_up(self, at: float) -> bool:
        """Whether a request of time ``at`` is part of the warm-up."""
        return at < self.began + self._parameters.warmup

    def record(self, sample: Sample) -> None:
        """Keep one sample."""
        self._write(SampleLine(sample=sample))
        self.collector.add(SampleLine(sample=sample))

    def note(self, text: str) -> None:
        """Say something about the run as a whole."""
        self._write(SampleLine(note=text))
        self.collector.add(SampleLine(note=text))

    def slept(self, wanted_s: float, took_s: float) -> None:
        """The watch slept; once a second it becomes a beat."""
        self._lag = max(self._lag, took_s - wanted_s)
        now = time.monotonic()
        if now - self._beaten < 1.0 or not self.began:
            return
        cpu = time.process_time()
        beat = Heartbeat(now, (cpu - self._cpu) / (now - self._beaten), self._lag, self.in_flight, self.users)
        self._cpu, self._beaten, self._lag = cpu, now, 0.0
        self._write(SampleLine(beat=beat))
        self.collector.add(SampleLine(beat=beat))

    def _write(self, line: SampleLine) -> None:
        if self._file is not None:
            self._file.write(encode(line))
