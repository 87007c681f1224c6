"""A clock whose waits take no time: it jumps to the earliest wait, or a test moves it by hand."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from itertools import count

TURN_S = 0.01
"""Real seconds for other work before a jump."""


class JumpingClock:
    """The clock. While it is ``held``, only :meth:`advance` moves it."""

    def __init__(self, *, held: bool = False) -> None:
        self.begin = self._now = time.time()
        self._held = held
        self._numbers = count()
        self._waits: list[tuple[float, int, asyncio.Future[None]]] = []
        self._jump: asyncio.TimerHandle | None = None
        self.longest = math.inf
        """The longest wait in seconds that the clock skips by itself."""
        self.slept: list[float] = []
        """The lengths of all waits in seconds."""

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waits, (self._now + seconds, next(self._numbers), future))
        self._plan()
        await future

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held, self.longest = False, math.inf
        self._plan()

    def _skips(self) -> bool:
        while self._waits and self._waits[0][2].done():
            heapq.heappop(self._waits)
        return bool(self._waits) and not self._held and self._waits[0][0] - self._now <= self.longest

    @property
    def waiting(self) -> list[float]:
        """The seconds that the present waits have left."""
        return sorted(at - self._now for at, _, future in self._waits if not future.done())

    async def advance(self, seconds: float) -> None:
        """Move the clock and let the waits that end run."""
        end = self._now + seconds
        while self._waits and self._waits[0][0] <= end:
            self._wake()
            await asyncio.sleep(0)
        self._now = end

    def _plan(self) -> None:
        if self._jump is None and self._skips():
            self._jump = asyncio.get_running_loop().call_later(TURN_S, self._jumped)

    def _jumped(self) -> None:
        self._jump = None
        if self._skips():
            self._wake()
            self._plan()

    def _wake(self) -> None:
        at, _, future = heapq.heappop(self._waits)
        if not future.done():
            self._now = max(self._now, at)
            future.set_result(None)
