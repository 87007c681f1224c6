"""The events of one response while it runs: readers follow them, and may resume after a number.

The buffer is bounded. The events of a foreground response wait for their reader: the turn reads the engine no
faster than the client reads. A background response waits for no reader. Then the oldest events expire, and a
reader that needs them gets the error ``events_expired``, never a gap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import msgspec

from appliance.errors import InvalidRequestError

MOST_EVENTS = 8192
MOST_BYTES = 4 * 2**20
KEEP_ALIVE_S = 10.0
COMMENT = b": wait\n\n"


class EventBuffer:
    """Numbered events, from the first that is kept.

    Args:
        waits: Whether a reader that is slow delays the turn; else its events expire.
        most_events: Events that are kept.
        most_bytes: Bytes that are kept.
    """

    def __init__(self, *, waits: bool, most_events: int = MOST_EVENTS, most_bytes: int = MOST_BYTES) -> None:
        self._waits = waits
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._frames: deque[bytes] = deque()
        self._first = 0
        self._changed = asyncio.Event()
        self._consumed = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self.bytes = 0
        self.closed = False

    @property
    def next_number(self) -> int:
        """The number of the event that follows."""
        return self._first + len(self._frames)

    def add(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Append ``events`` and wake the readers."""
        for event in events:
            frame = b"event: %s\ndata: %s\n\n" % (str(event["type"]).encode(), msgspec.json.encode(event))
            self._frames.append(frame)
            self.bytes += len(frame)
        self._drop()
        self._wake()

    def close(self) -> None:
        """Mark the last event as received."""
        self.closed = True
        self._has_room.set()
        self._wake()

    async def room(self) -> None:
        """Wait until the reader of a foreground response has read enough."""
        if self._waits and not self.closed and self._is_full():
            self._has_room.clear()
            await self._has_room.wait()

    def check(self, after: int) -> None:
        """Raise :class:`InvalidRequestError` if an event after number ``after`` is not kept."""
        if after + 1 < self._first:
            raise InvalidRequestError(
                f"The events up to {self._first - 1} have expired; read the response without stream.",
                code="events_expired",
                param="starting_after",
            )

    async def follow(self, after: int = -1) -> AsyncIterator[bytes]:
        """Yield the frames after number ``after`` until the last one, and comments while none follows."""
        number = after + 1
        while True:
            while number < self.next_number:
                if number < self._first:
                    yield _expired(number)
                    return
                frame = self._frames[number - self._first]
                number += 1
                self._consume(number)
                yield frame
            if self.closed:
                return
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    await self._changed.wait()
            except TimeoutError:
                yield COMMENT

    def _consume(self, number: int) -> None:
        if self._waits:
            self._consumed = max(self._consumed, number)
            self._drop()
            if not self._is_full():
                self._has_room.set()

    def _is_full(self) -> bool:
        return len(self._frames) > self._most_events or self.bytes > self._most_bytes

    def _drop(self) -> None:
        while self._is_full() and (not self._waits or self._first < self._consumed):
            self.bytes -= len(self._frames.popleft())
            self._first += 1

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _expired(number: int) -> bytes:
    event = {
        "type": "error",
        "sequence_number": number,
        "code": "events_expired",
        "message": "This reader is too slow: its next events have expired. Read the response without stream.",
        "param": None,
    }
    return b"event: error\ndata: %s\n\n" % msgspec.json.encode(event)
