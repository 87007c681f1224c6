"""All client connections of one application: their deadlines, and how they end."""

from __future__ import annotations

import asyncio
import os
from itertools import count

from appliance.gateway.cors import NO_ORIGINS, BrowserOrigins
from appliance.http1.connection import ClientConnection
from appliance.http1.types import Handler, Timeouts
from appliance.http1.writer import WriteCoalescer

SWEEP_S = 0.5
"""How often deadlines are looked at: one timer for all connections, none per request."""


class Server:
    """All client connections of one application, their deadlines, and how they end."""

    def __init__(
        self, handler: Handler, timeouts: Timeouts, outbox: WriteCoalescer, origins: BrowserOrigins = NO_ORIGINS
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self.handler = handler
        self.timeouts = timeouts
        self.outbox = outbox
        self.origins = origins
        self.browsers = origins.named
        """Whether any origin is allowed: without one, no request is looked at for it."""
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self._empty: asyncio.Event | None = None
        self._prefix = os.urandom(6).hex()
        self._numbers = count(1)
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def request_id(self) -> str:
        """Return an id that no other request has."""
        return f"{self._prefix}{next(self._numbers):012x}"

    def connect(self) -> ClientConnection:
        """The protocol of a new connection."""
        return ClientConnection(self)

    def drain(self) -> None:
        """From now on every answer is the last of its connection; idle ones close at once."""
        self.draining = True
        for connection in [*self.connections]:
            connection.drain()

    async def drained(self) -> None:
        """Wait until no request is being answered."""
        self._empty = asyncio.Event()
        self.look()
        await self._empty.wait()

    async def flushed(self) -> None:
        """Wait until every connection has taken what was written to it, and closed."""
        while any(connection.buffered for connection in self.connections):  # noqa: ASYNC110 - the kernel's state
            await asyncio.sleep(0.01)

    def look(self) -> None:
        """Notice the last answer's end while draining."""
        if self._empty is not None and not any(c.answering for c in self.connections):
            self._empty.set()

    def close(self) -> None:
        """End every connection."""
        self._sweeper.cancel()
        for connection in [*self.connections]:
            connection.cut()

    def _sweep(self) -> None:
        now = self.now()
        for connection in [*self.connections]:
            connection.expire(now)
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)
