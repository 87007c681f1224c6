"""Gathers samples while a run goes on, an hour of them in bounded memory each."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtests.sample import Gaps, Heartbeat, Sample, SampleLine


@dataclass(slots=True)
class Collector:
    """What a run left: measured samples, the warm-up's count, the client's beats."""

    samples: list[Sample] = field(default_factory=list)
    """Measured ones. Their gaps are merged into :attr:`gaps`; each keeps only its longest."""
    warmup: int = 0
    gaps: Gaps = field(default_factory=Gaps)
    beats: list[Heartbeat] = field(default_factory=list)
    began: float = 0.0
    ended: bool = False
    """Whether the load ended by itself."""
    notes: list[str] = field(default_factory=list)

    def add(self, line: SampleLine) -> None:
        """Take one line of a samples file."""
        if line.began is not None:
            self.began = line.began
        if line.beat is not None:
            self.beats.append(line.beat)
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
