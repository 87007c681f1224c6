"""Collects samples during a run; each takes bounded memory, also over an hour."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtests.sample import Gaps, Heartbeat, Sample, SampleLine


@dataclass(slots=True)
class Collector:
    """The data of a run: measured samples, the number of warm-up requests, the client's heartbeats."""

    samples: list[Sample] = field(default_factory=list)
    """Measured samples. Their gaps are merged into :attr:`gaps`; each sample keeps only its longest."""
    warmup: int = 0
    gaps: Gaps = field(default_factory=Gaps)
    heartbeats: list[Heartbeat] = field(default_factory=list)
    began: float = 0.0
    ended: bool = False
    """Whether the load was complete at its end."""
    notes: list[str] = field(default_factory=list)

    def add(self, line: SampleLine) -> None:
        """Add one line of a samples file."""
        if line.began is not None:
            self.began = line.began
        if line.beat is not None:
            self.heartbeats.append(line.beat)
        if line.ended is not None:
            self.ended = True
        if line.note is not None:
            self.notes.append(line.note)
        sample = line.sample
        if sample is None:
            return
        if sample.warmup:
            self.warmup += 1
            return
        if sample.good:
            self.gaps.merge(sample.gaps)
        sample.gaps = Gaps(longest=sample.gaps.longest, longest_at=sample.gaps.longest_at)
        self.samples.append(sample)
