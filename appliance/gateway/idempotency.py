"""``Idempotency-Key``: a repeated request gets the response of the first one, which runs once.

A client behind two edges cannot detect whether the engine had started when its connection failed. With a key, a
retry is safe. A :class:`RecordedResponse` keeps the response, and a request with the same key and body reads it
from its beginning, also while it is recorded. Without a key, no request is repeated.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from appliance.errors import IdempotencyError, InvalidRequestError
from appliance.http1.types import JSON, SSE, ClientResponder, Responder

MAX_KEY = 255
"""Longest key in bytes."""

OVERHEAD = 1024
"""Bytes that a recording occupies in addition to its response: rejections are short and must not be free."""

MAX_BYTES = 64 * 2**20
"""Bytes of complete responses that are kept; beyond this, the oldest are discarded first."""


class RecordedRequest(Protocol):
    """The request whose response is recorded."""

    @property
    def repeatable(self) -> bool:
        """Whether the complete response would be the same again."""


class RecordedResponse:
    """A response as it is written, and its readers. The request writes to it as to a client."""

    def __init__(self, finished: Callable[[RecordedResponse], None]) -> None:
        self._finished = finished
        self._calls: list[Callable[[Responder], None]] = []
        self._readers: list[ClientResponder] = []
        self.request: RecordedRequest | None = None
        self.size = OVERHEAD
        self.complete = False

    def follow(self, reader: ClientResponder) -> None:
        """Write everything recorded so far to ``reader``, and everything that follows."""
        if not self.complete:
            self._readers.append(reader)
            reader.listener = _Reader(self, reader)
        for call in self._calls:
            call(reader)

    def leave(self, reader: ClientResponder) -> None:
        """Remove ``reader``, which disconnected; the recording continues."""
        if reader in self._readers:
            self._readers.remove(reader)

    # Called by the request.

    def respond(self, status: int, body: bytes, kind: bytes = JSON, headers: bytes = b"") -> None:
        """Record a whole response."""
        self._end(len(body), lambda client: client.respond(status, body, kind, headers))

    def start_stream(self, status: int, headers: bytes, kind: bytes = SSE) -> None:
        """Record the head of a streamed response."""
        self._record(0, lambda client: client.start_stream(status, headers, kind))

    def write(self, data: bytes) -> None:
        """Record a part of the stream."""
        self._record(len(data), lambda client: client.write(data))

    def end_stream(self, data: bytes = b"") -> None:
        """Record the last part of the stream."""
        self._end(len(data), lambda client: client.end_stream(data))

    def abort(self) -> None:
        """Close every reader's connection and free the key: no response will follow."""
        readers = [*self._readers]
        self._readers.clear()
        self.complete = True
        self._finished(self)
        for reader in readers:
            reader.abort()

    def _record(self, size: int, call: Callable[[Responder], None]) -> None:
        self.size += size
        self._calls.append(call)
        for reader in self._readers:
            call(reader)

    def _end(self, size: int, call: Callable[[Responder], None]) -> None:
        self.complete = True
        self._record(size, call)
        self._readers.clear()
        self._finished(self)


class _Reader:
    """A client that reads a recording: its disconnect or slowness does not affect the recording."""

    def __init__(self, recording: RecordedResponse, client: ClientResponder) -> None:
        self._recording = recording
        self._client = client

    def client_disconnected(self) -> None:
        self._recording.leave(self._client)

    def client_slow(self) -> None:
        """Do nothing: the recording is the buffer, and the server closes a connection that reads nothing."""

    def client_ready(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class _Entry:
    digest: bytes
    recording: RecordedResponse
    finished_at: float | None = None


class IdempotencyCache:
    """The recorded responses, by caller (:attr:`Key.scope`) and Idempotency-Key.

    The caller is an API key and the end user of the request. Another key of the same user may lack access to the
    model, or may be revoked during the response. Another end user must not read it.

    Args:
        keep_s: Seconds for which a complete response is kept.
        clock: Time in seconds.
    """

    def __init__(self, keep_s: float, clock: Callable[[], float]) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self._entries: OrderedDict[tuple[str, bytes], _Entry] = OrderedDict()
        self._bytes = 0

    def find(self, owner: str, key: bytes, *, path: str, body: bytes) -> RecordedResponse | None:
        """Return the recording of this request, or ``None`` if the request is new.

        Raises :class:`IdempotencyError` if the key was used for another request, and :class:`InvalidRequestError`
        if the key is empty or too long.
        """
        if not 0 < len(key) <= MAX_KEY:
            raise InvalidRequestError(f"Idempotency-Key has {len(key)} bytes; use 1 to {MAX_KEY}")
        self._expire()
        entry = self._entries.get((owner, key))
        if entry is None:
            return None
        if entry.digest != _digest(path, body):
            raise IdempotencyError("This Idempotency-Key was used for another request; use a new one")
        return entry.recording

    def record(self, owner: str, key: bytes, *, path: str, body: bytes) -> RecordedResponse:
        """Begin a recording for this request."""
        name = (owner, key)
        recording = RecordedResponse(lambda recording: self._finish(name, recording))
        self._entries[name] = _Entry(_digest(path, body), recording)
        return recording

    def __len__(self) -> int:
        return len(self._entries)

    def _finish(self, name: tuple[str, bytes], recording: RecordedResponse) -> None:
        # The request refers to its recording: without this, only the garbage collector would free both.
        request, recording.request = recording.request, None
        entry = self._entries.get(name)
        if entry is None or entry.recording is not recording:
            return
        if request is None or not request.repeatable:
            # A failure is not kept, so that a retry runs again.
            del self._entries[name]
            return
        entry.finished_at = self._clock()
        self._entries.move_to_end(name)
        self._bytes += recording.size
        self._expire()

    def _expire(self) -> None:
        now = self._clock()
        stale = []
        for name, entry in self._entries.items():
            if entry.finished_at is None:
                continue
            if self._bytes <= MAX_BYTES and now - entry.finished_at <= self._keep_s:
                break
            stale.append(name)
            self._bytes -= entry.recording.size
        for name in stale:
            del self._entries[name]


def _digest(path: str, body: bytes) -> bytes:
    return blake2b(body, key=path.encode()[:64], digest_size=16).digest()
