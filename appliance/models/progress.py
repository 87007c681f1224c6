"""Progress of a long transfer: bytes done, rate, time left."""

from __future__ import annotations

from collections import deque

WINDOW_S = 30.0
"""Length of the window of the rate, in seconds: a rate since the start would hide that a line became slow."""


class TransferRate:
    """Bytes of a transfer over time. The caller passes the time, in seconds on any clock that only rises."""

    def __init__(self, *, total: int, done: int, now: float) -> None:
        self.total = total
        self.done = done
        self._marks = deque([(now, done)])

    def add(self, count: int, now: float) -> None:
        """Count ``count`` more bytes, or fewer if it is negative."""
        self.done += count
        # One mark in each tenth of the window.
        if now - self._marks[-1][0] >= WINDOW_S / 10:
            self._marks.append((now, self.done))
        while len(self._marks) > 1 and now - self._marks[0][0] > WINDOW_S:
            self._marks.popleft()

    def rate(self, now: float) -> float:
        """Return the bytes a second within the window, 0.0 before the first."""
        began, done = self._marks[0]
        return max(0.0, (self.done - done) / (now - began)) if now > began else 0.0

    def text(self, now: float) -> str:
        """Return one line, such as ``1.2 GB of 61.1 GB, 310.0 MB/s, 3 min left``."""
        rate = self.rate(now)
        left = f"{duration_text((self.total - self.done) / rate)} left" if rate else "time left unknown"
        return f"{size_text(self.done)} of {size_text(self.total)}, {size_text(rate)}/s, {left}"


def size_text(count: float) -> str:
    """Return bytes as people write them, such as ``61.1 GB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} bytes"


def duration_text(seconds: float) -> str:
    """Return a duration with one unit, such as ``3 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
