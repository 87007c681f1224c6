"""The clock of the bot. Tests replace it, so that waits of minutes take no time."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class BotClock(Protocol):
    """A clock and its waits."""

    def now(self) -> float:
        """Return the time in seconds since the epoch."""

    async def sleep(self, seconds: float) -> None:
        """Wait for ``seconds``."""


class SystemClock:
    """The clock of the machine."""

    def now(self) -> float:
        """Return the time in seconds since the epoch."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait for ``seconds``."""
        await asyncio.sleep(seconds)
