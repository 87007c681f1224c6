"""When a replica is left alone: after failures of its own in a row, until it has generated a token again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PROBE_S = 1.0
LAST_PROBE_S = 15.0
"""Seconds between canaries while it is down: doubled from the first to the last."""


@dataclass(slots=True)
class Breaker:
    """One replica's state. What a client did (4xx, leaving) is never told to it."""

    threshold: int
    failures: int = 0
    up: bool = True
    why: str = ""
    probe_at: float = 0.0
    _wait: float = FIRST_PROBE_S

    def succeeded(self) -> None:
        """The replica answered, or its canary token came."""
        self.failures = 0
        self._wait = FIRST_PROBE_S
        if not self.up:
            self.up = True
            self.why = ""

    def failed(self, why: str, now: float, *, at_once: bool = False) -> bool:
        """The replica failed; ``at_once`` where one failure says it all. Whether it went down by this."""
        self.failures += 1
        if not self.up:
            self.why = why
            return False
        if not at_once and self.failures < self.threshold:
            return False
        self.up = False
        self.why = why
        self._wait = FIRST_PROBE_S
        self.probe_at = now + self._wait
        return True

    def probed_in_vain(self, why: str, now: float) -> None:
        """A canary while down brought no token: the next one comes later."""
        self.why = why
        self._wait = min(self._wait * 2, LAST_PROBE_S)
        self.probe_at = now + self._wait
