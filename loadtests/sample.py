"""One request as its client measured it: plain data, one line of JSON each.

All times are seconds on the host's monotonic clock, so that times of clients and scrapers are comparable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec

WIDTH = 1.01
"""Ratio of adjacent bucket bounds in :class:`Gaps`: its percentiles have an error of at most 0.5 %."""

SMALLEST_S = 1e-6


@dataclass(slots=True)
class Gaps:
    """Times between tokens, counted in buckets of 1 % width: an hour of tokens in a few hundred numbers.

    Tokens of one read have no time between them; such gaps are exact zeros and counted separately.
    """

    zeros: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    longest: float = 0.0
    longest_at: float = 0.0

    def add(self, seconds: float, now: float) -> None:
        """Count one gap of ``seconds`` that ended at ``now``."""
        if seconds < SMALLEST_S:
            self.zeros += 1
            return
        bucket = math.ceil(math.log(seconds / SMALLEST_S, WIDTH))
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        if seconds > self.longest:
            self.longest, self.longest_at = seconds, now

    def merge(self, other: Gaps) -> None:
        """Add the counts of ``other``."""
        self.zeros += other.zeros
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        if other.longest > self.longest:
            self.longest, self.longest_at = other.longest, other.longest_at

    @property
    def total(self) -> int:
        """The number of gaps."""
        return self.zeros + sum(self.counts.values())

    def percentile(self, share: float) -> float | None:
        """Return the nearest-rank percentile in seconds to 0.5 %, ``share`` in 0..1; ``None`` without gaps."""
        total = self.total
        if not total:
            return None
        rank = max(1, math.ceil(share * total))
        if rank == total and self.longest:
            return self.longest
        seen = self.zeros
        if rank <= seen:
            return 0.0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return min(self.longest, float(SMALLEST_S * WIDTH ** (bucket - 0.5)))
        return self.longest


@dataclass(slots=True)
class Sample:
    """One request and its response; ``cause`` is empty for a good one (see :mod:`loadtests.outcome`)."""

    sent_at: float
    user: int = 0
    model: str = ""
    kind: str = "chat"
    streamed: bool = True
    max_tokens: int = 0
    wanted_prompt_tokens: int | None = None
    scheduled_at: float | None = None
    """Time in the schedule of an open loop; ``None`` in closed loops."""
    warmup: bool = False

    status: int = 0
    first_token_at: float | None = None
    last_token_at: float | None = None
    ended_at: float = 0.0
    chunks: int = 0
    """Events with content."""
    first_tokens: int = 1
    """Tokens in the first of them as reported by the engine, 1 if it reports none."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    done: bool = False
    queue_ms: float | None = None
    """Value of the gateway's header ``x-queue-wait-ms``; ``None`` without it."""
    reconnected: bool = False
    """The kept connection was stale, and the request was sent again on a new one."""
    gaps: Gaps = field(default_factory=Gaps)
    cause: str = ""
    detail: str = ""

    @property
    def ttft(self) -> float | None:
        """Seconds from sending to the first content; ``None`` for a response without streaming."""
        if self.first_token_at is None or not self.streamed:
            return None
        return self.first_token_at - self.began_at

    @property
    def began_at(self) -> float:
        """Start of the latency: in an open loop the time in the schedule, so that a late client hides nothing."""
        return self.sent_at if self.scheduled_at is None else self.scheduled_at

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first chunk; ``None`` if no token follows it."""
        if self.first_token_at is None or self.last_token_at is None or not self.streamed:
            return None
        if self.completion_tokens is None or self.completion_tokens <= self.first_tokens:
            return None
        return (self.last_token_at - self.first_token_at) / (self.completion_tokens - self.first_tokens)

    @property
    def e2e(self) -> float:
        """Seconds from sending to the end of the response."""
        return self.ended_at - self.began_at

    @property
    def good(self) -> bool:
        """Whether the response is good."""
        return not self.cause


@dataclass(slots=True)
class Heartbeat:
    """State of the load client, once a second: time, CPU share since the last heartbeat, lag."""

    at: float
    cpu_share: float
    lag_s: float
    """The longest oversleep of a 20 ms sleep since the last heartbeat, in seconds."""
    in_flight: int
    users: int


@dataclass(slots=True)
class SampleLine:
    """One line of a samples file: exactly one of its fields is set."""

    sample: Sample | None = None
    beat: Heartbeat | None = None
    began: float | None = None
    """Start of the first user."""
    note: str | None = None
    ended: float | None = None
    """End of the load; a run without it was interrupted."""


ENCODE = msgspec.json.Encoder()
DECODE: msgspec.json.Decoder[SampleLine] = msgspec.json.Decoder(SampleLine)


def encode(line: SampleLine) -> bytes:
    """Return one line of a samples file, with its line end."""
    fields = ("sample", "beat", "began", "note", "ended")
    table = {name: value for name in fields if (value := getattr(line, name)) is not None}
    return ENCODE.encode(table) + b"\n"
