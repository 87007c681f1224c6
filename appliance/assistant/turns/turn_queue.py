"""Turns of one conversation run one after the other, in the order of their requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from appliance.errors import ConflictError

MAX_WAITING = 8
"""Turns of one conversation that wait; a further one gets 409."""


class _TurnLine:
    """One running turn and those that wait for its end."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class TurnQueue:
    """The lines of all conversations."""

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._lines: dict[tuple[str, str], _TurnLine] = {}
        self._max_waiting = max_waiting

    @asynccontextmanager
    async def turn(self, tenant: str, conversation: str) -> AsyncIterator[None]:
        """Wait for the turns before this one; the next one begins at the end of the block.

        Raises :class:`ConflictError` if too many wait.
        """
        key = (tenant, conversation)
        line = self._lines.setdefault(key, _TurnLine())
        if line.users > self._max_waiting:
            raise ConflictError(
                f"{self._max_waiting} turns of this conversation wait already; try again when they have ended.",
                code="conversation_busy",
                param="conversation",
            )
        line.users += 1
        try:
            async with line.lock:
                yield
        finally:
            line.users -= 1
            if not line.users:
                del self._lines[key]
