"""One answer as its client saw it: plain data, one line of JSON each.

All times are seconds on one monotonic clock, the host's (so that the clients' and the scrapers' times compare).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec

WIDTH = 1.01
"""Ratio of neighbouring bucket bounds of :class:`Gaps`: a percentile read from it is at most 0.5 % off."""

SMALLEST_S = 1e-6


@dataclass(slots=True)
class Gaps:
    """Times between arrivals, counted in buckets of 1 % width: an hour of tokens in a few hundred numbers.

    Tokens that came in one read have no time between them; such gaps are exact zeros, counted apart.
    """

    zeros: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    longest: float = 0.0
    longest_at: float = 0.0

    def add(self, seconds: float, now: float) -> None:
        """Count one gap that ended at ``now``."""
        if seconds < SMALLEST_S:
            self.zeros += 1
            return
        bucket = math.ceil(math.log(seconds / SMALLEST_S, WIDTH))
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        if seconds > self.longest:
            self.longest, self.longest_at = seconds, now

    def merge(self, other: Gaps) -> None:
        """Add what ``other`` counted."""
        self.zeros += other.zeros
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        if other.longest > self.longest:
            self.longest, self.longest_at = other.longest, other.longest_at

    @property
    def total(self) -> int:
        """How many were counted."""
        return self.zeros + sum(self.counts.values())

    def percentile(self, share: float) -> float | None:
        """Nearest-rank percentile in seconds, ``share`` in 0..1, to 0.5 %; ``None`` without gaps."""
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
    """One request and its answer; ``cause`` is empty for a good answer (see :mod:`loadtests.outcome`)."""

    sent_at: float
    user: int = 0
    model: str = ""
    kind: str = "chat"
    streamed: bool = True
    max_tokens: int = 0
    wanted_prompt_tokens: int | None = None
    scheduled_at: float | None = None
    """When an open-loop schedule wanted it sent; ``None`` in closed loops."""
    warmup: bool = False

    status: int = 0
    first_token_at: float | None = None
    last_token_at: float | None = None
    ended_at: float = 0.0
    chunks: int = 0
    """Events that brought content."""
    first_tokens: int = 1
    """Tokens of the first of them: what the engine said, 1 where it does not say."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    done: bool = False
    queue_ms: float | None = None
    """What the gateway's ``x-queue-wait-ms`` said; ``None`` without that header."""
    reconnected: bool = False
    """The kept connection had gone stale, and the request was sent again on a new one."""
    gaps: Gaps = field(default_factory=Gaps)
    cause: str = ""
    detail: str = ""

    @property
    def ttft(self) -> float | None:
        """Seconds from sending to the first content; ``None`` for an answer in one piece."""
        if self.first_token_at is None or not self.streamed:
            return None
        return self.first_token_at - self.began_at

    @property
    def began_at(self) -> float:
        """Where latency is counted from: in an open loop the schedule's time, so that lateness hides nothing."""
        return self.sent_at if self.scheduled_at is None else self.scheduled_at

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after those of the first chunk; ``None`` where there are none after it."""
        if self.first_token_at is None or self.last_token_at is None or not self.streamed:
            return None
        if self.completion_tokens is None or self.completion_tokens <= self.first_tokens:
            return None
        return (self.last_token_at - self.first_token_at) / (self.completion_tokens - self.first_tokens)

    @property
    def e2e(self) -> float:
        """Seconds from sending to the end of the answer."""
        return self.ended_at - self.began_at

    @property
    def good(self) -> bool:
        """A whole answer."""
        return not self.cause


@dataclass(slots=True)
class Heartbeat:
    """How the load client itself was, once a second: time, its own CPU share since the last beat, its lag."""

    at: float
    cpu_share: float
    lag_s: float
    """The longest oversleep of a 20 ms sleep since the last beat, in seconds."""
    in_flight: int
    users: int


@dataclass(slots=True)
class SampleLine:
    """One line of a samples file: exactly one of its fields is set."""

    sample: Sample | None = None
    beat: Heartbeat | None = None
    began: float | None = None
    """When the first user began."""
    note: str | None = None
    ended: float | None = None
    """When the load ended by itself: a run without it was cut."""


ENCODE = msgspec.json.Encoder()
DECODE: msgspec.json.Decoder[SampleLine] = msgspec.json.Decoder(SampleLine)


def encode(line: SampleLine) -> bytes:
    """One line of a samples file, with its end."""
    fields = ("sample", "beat", "began", "note", "ended")
    table = {name: value for name in fields if (value := getattr(line, name)) is not None}
    return ENCODE.encode(table) + b"\n"
