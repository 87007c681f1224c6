"""The data of the plots: a run over time in at most 120 steps, and single requests as points. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtests.collect import Collector
from loadtests.estimates import percentile
from loadtests.outcome import NOT_ERRORS
from loadtests.sample import Sample

STEPS = 120
POINTS = 1500


@dataclass(slots=True)
class Timeline:
    """Columns of equal length, one entry per step of ``step_s``; times since the first user began."""

    step_s: float = 1.0
    warmup_s: float = 0.0
    at_s: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)
    ttft_p50_ms: list[float | None] = field(default_factory=list)
    ttft_p99_ms: list[float | None] = field(default_factory=list)
    max_itl_ms: list[float | None] = field(default_factory=list)
    client: list[tuple[float, float, float, int]] = field(default_factory=list)
    """(at_s, CPU share, lag in ms, requests in flight) of each heartbeat, thinned to the steps."""


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """One request: time of sending, TTFT and E2E in ms, cause of its failure."""

    at_s: float
    ttft_ms: float | None
    e2e_ms: float
    cause: str


def timeline(collected: Collector, warmup_s: float) -> Timeline:
    """Return the measured samples by their time of sending, and tokens by their time of arrival."""
    samples = collected.samples
    if not samples:
        return Timeline()
    zero = collected.began or min(s.sent_at for s in samples)
    length = max(s.ended_at for s in samples) - zero
    step = max(1.0, length / STEPS)
    count = int(length / step) + 1
    found = Timeline(step, warmup_s, [round(i * step, 3) for i in range(count)])
    found.sent, found.failed = [0] * count, [0] * count
    tokens = [0.0] * count
    ttft: list[list[float]] = [[] for _ in range(count)]
    itl: list[list[float]] = [[] for _ in range(count)]
    for sample in samples:
        place = min(count - 1, max(0, int((sample.sent_at - zero) / step)))
        found.sent[place] += 1
        found.failed[place] += bool(sample.cause) and sample.cause not in NOT_ERRORS
        if sample.good:
            _spread(sample, tokens, zero=zero, step=step)
            if sample.ttft is not None:
                ttft[place].append(1000 * sample.ttft)
                itl[min(count - 1, max(0, int((sample.ended_at - zero) / step)))].append(1000 * sample.gaps.longest)
    found.tokens_per_s = [round(value / step, 2) for value in tokens]
    found.ttft_p50_ms = [percentile(values, 0.5) if values else None for values in ttft]
    found.ttft_p99_ms = [percentile(values, 0.99) if values else None for values in ttft]
    found.max_itl_ms = [max(values) if values else None for values in itl]
    every = max(1, len(collected.heartbeats) // STEPS)
    found.client = [(b.at - zero, b.cpu_share, 1000 * b.lag_s, b.in_flight) for b in collected.heartbeats[::every]]
    return found


def _spread(sample: Sample, tokens: list[float], zero: float, step: float) -> None:
    since = sample.first_token_at if sample.streamed and sample.first_token_at else sample.ended_at
    until = max(sample.last_token_at or since, since + 1e-3)
    first, last = max(0, int((since - zero) / step)), min(len(tokens) - 1, int((until - zero) / step))
    for place in range(first, last + 1):
        overlap = min(until, zero + (place + 1) * step) - max(since, zero + place * step)
        tokens[place] += (sample.completion_tokens or 0) * max(0.0, overlap) / (until - since)


def points(collected: Collector) -> list[TimelinePoint]:
    """Return requests as points, thinned evenly to :data:`POINTS`; all failures are kept."""
    samples = sorted(collected.samples, key=lambda s: s.sent_at)
    if not samples:
        return []
    zero = collected.began or samples[0].sent_at
    kept = samples
    if len(samples) > POINTS:
        every = len(samples) / POINTS
        kept = [samples[int(i * every)] for i in range(POINTS)]
        # Thinning must not remove a rare failure.
        chosen = {id(sample) for sample in kept}
        kept += [s for s in samples if s.cause and id(s) not in chosen][:POINTS]
    return [
        TimelinePoint(
            round(s.sent_at - zero, 3),
            None if s.ttft is None else round(1000 * s.ttft, 3),
            e2e_ms=round(1000 * s.e2e, 3),
            cause=s.cause,
        )
        for s in kept
    ]
