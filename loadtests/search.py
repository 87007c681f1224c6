"""Searches the highest load that meets the SLOs. Pure: proposes a load, records its result, proposes the next."""

from __future__ import annotations

from dataclasses import dataclass, field

STEPS = 24
"""Maximum of proposals; doubling over three decades and halving to 5 % need fewer."""


@dataclass(frozen=True, slots=True)
class SearchStep:
    """One tested load: requests/s in an open loop, users in a closed one."""

    load: float
    held: bool
    invalid: bool = False
    requests_per_s: float | None = None
    """Goodput at this load, with the bounds of its interval."""
    low: float | None = None
    high: float | None = None
    why: str = ""


@dataclass(slots=True)
class Search:
    """Doubles until a load fails, then halves the gap (geometrically) until both ends are within ``resolution``.

    An invalid run, in which the client was the limit, bounds the search like a failure. Then :attr:`resolved` stays
    false: the best load is a lower bound.
    """

    start: float
    most: float
    resolution: float = 0.1
    whole: bool = False
    """Loads are whole numbers (users)."""
    steps: list[SearchStep] = field(default_factory=list)

    @property
    def best(self) -> SearchStep | None:
        """The highest load that held, below all loads that failed."""
        return max((s for s in self.steps if s.held and s.load < self._ceiling), key=lambda s: s.load, default=None)

    @property
    def _ceiling(self) -> float:
        return min((s.load for s in self.steps if not s.held), default=float("inf"))

    @property
    def resolved(self) -> bool:
        """Whether the result is exact to ``resolution``: a valid run above it failed."""
        over = min((s for s in self.steps if not s.held), key=lambda s: s.load, default=None)
        return self.best is not None and over is not None and not over.invalid and self.next() is None

    def next(self) -> float | None:
        """Return the next load to test; ``None`` at the end."""
        if len(self.steps) >= STEPS:
            return None
        if not self.steps:
            return self._shaped(min(self.start, self.most))
        best, ceiling = self.best, self._ceiling
        if best is None:
            lower = self._shaped(ceiling / 4)
            return None if lower >= ceiling or ceiling < self.start / 256 else lower
        if ceiling == float("inf"):
            return None if best.load >= self.most else self._shaped(min(self.most, best.load * 2))
        middle = self._shaped((best.load * ceiling) ** 0.5)
        small = ceiling / best.load <= 1 + self.resolution
        return None if small or not best.load < middle < ceiling else middle

    def record(self, step: SearchStep) -> None:
        """Record the result of a proposal."""
        self.steps.append(step)

    def _shaped(self, load: float) -> float:
        return float(max(1, round(load))) if self.whole else load
