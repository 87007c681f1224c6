"""Whole frames of the assistant's SSE streams, and the event with which the gateway ends a cut one. Pure.

Only whole frames are forwarded, so that an event of the gateway's own can follow at any time.
"""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.errors import AssistantFailedError, RequestError
from appliance.gateway import reply
from appliance.gateway.paths import RESPONSES
from appliance.gateway.sse import MAX_FRAME

ENDS = (b"\n\n", b"\r\n\r\n")
"""The end of a frame, in the two forms that servers write."""

LONGEST_END = max(map(len, ENDS))


class _PassedEvent(msgspec.Struct):
    """The parts of an event of /v1/responses that a following event needs."""

    sequence_number: int | None = None
    response: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_EVENT = msgspec.json.Decoder(_PassedEvent)


class PassedStream:
    """The frames of one stream: feed it the received bytes, forward the bytes that it returns."""

    __slots__ = ("_held", "_last", "_opening", "_size")

    def __init__(self) -> None:
        self._held: list[bytes] = []
        """The pieces of a frame that has no end yet."""
        self._size = 0
        """Bytes in those pieces."""
        self._opening: bytes | None = None
        """The first numbered event: it has the response object."""
        self._last = b""
        """The last numbered events that were forwarded."""

    def feed(self, data: bytes) -> bytes:
        """Return the whole frames in ``data`` and in earlier data.

        Raises :class:`AssistantFailedError` for a frame over :data:`~appliance.gateway.sse.MAX_FRAME` bytes.
        """
        # An end may begin in the piece before.
        overlap = b"".join(self._held[-LONGEST_END + 1 :])[-LONGEST_END + 1 :]
        end = _end(overlap + data) - len(overlap)
        if end <= 0:
            self._held.append(data)
            self._size += len(data)
            if self._size > MAX_FRAME:
                raise AssistantFailedError("the assistant sent an event without an end; see its log")
            return b""
        ready, rest = b"".join([*self._held, data[:end]]), data[end:]
        self._held = [rest] if rest else []
        self._size = len(rest)
        if b'"sequence_number"' in ready:
            self._last = ready
            if self._opening is None:
                self._opening = ready
        return ready

    def finish(self) -> bytes:
        """Return the rest of a stream that is complete."""
        rest = b"".join(self._held)
        self._held, self._size = [], 0
        return rest

    def error_event(self, error: RequestError, path: str) -> bytes:
        """Return ``error`` as the last event of the stream, in the shape that clients of ``path`` read.

        On /v1/responses it has the stream's response object and the number that follows.
        """
        if not path.startswith(RESPONSES):
            return reply.error_event(error, path)
        opening = next((event.response for event in _events(self._opening or b"")), None)
        numbers = [event.sequence_number for event in _events(self._last) if event.sequence_number is not None]
        known: dict[str, Any] = {"id": path.removeprefix(RESPONSES + "/")} if path != RESPONSES else {}
        return reply.error_event(
            error,
            RESPONSES,
            opening=bytes(opening) if isinstance(opening, msgspec.Raw) else msgspec.json.encode(known),
            sequence=numbers[-1] + 1 if numbers else 0,
        )


def _end(data: bytes) -> int:
    """Return the position behind the last frame in ``data``; 0 if none ends in it."""
    return max(at + len(mark) if (at := data.rfind(mark)) >= 0 else 0 for mark in ENDS)


def _events(frames: bytes) -> list[_PassedEvent]:
    found = []
    for line in frames.splitlines():
        if line.startswith(b"data:"):
            try:
                found.append(_EVENT.decode(line[5:]))
            except msgspec.DecodeError:
                continue
    return found
