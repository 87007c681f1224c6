"""``Idempotency-Key``: a request that is sent again gets the answer of the first one, which runs once.

A client behind two edges cannot detect whether the engine had started when its connection failed. With a key, a
retry is safe: a :class:`RecordedResponse` keeps the response, and a request with the same key and body reads
the recording from its beginning, also during the recording. Without a key, no request is repeated.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from appliance.errors import IdempotencyError, InvalidRequestError
from appliance.gateway.lifecycle import ProxiedRequest
from appliance.http1.types import JSON, ClientResponder, Responder

MAX_KEY = 255
OVERHEAD = 1024
"""Bytes that a tape takes besides its answer: refusals are short, and must not be free."""

MAX_BYTES = 64 * 2**20
"""Bytes of finished answers that are kept; beyond, the oldest are forgotten first."""


class RecordedResponse:
    """One answer as it is written, and its readers. To the exchange it is the client."""

    def __init__(self, finished: Callable[[RecordedResponse], None]) -> None:
        self._finished = finished
        self._calls: list[Callable[[Responder], None]] = []
        self._readers: list[ClientResponder] = []
        self.exchange: ProxiedRequest | None = None
        self.size = OVERHEAD
        self.complete = False

    def follow(self, reader: ClientResponder) -> None:
        """Play everything so far to ``reader``, and what comes."""
        if not self.complete:
            self._readers.append(reader)
            reader.listener = _Reader(self, reader)
        for call in self._calls:
            call(reader)

    def leave(self, reader: ClientResponder) -> None:
        """``reader`` has gone; the answer is recorded all the same."""
        if reader in self._readers:
            self._readers.remove(reader)

    # What the exchange calls.

    def answer(self, status: int, body: bytes, kind: bytes = JSON, headers: bytes = b"") -> None:
        """One whole answer."""
        self._end(len(body), lambda client: client.answer(status, body, kind, headers))

    def start_stream(self, status: int, headers: bytes) -> None:
        """The head of a streamed answer."""
        self._record(0, lambda client: client.start_stream(status, headers))

    def write(self, data: bytes) -> None:
        """A piece of it."""
        self._record(len(data), lambda client: client.write(data))

    def end_stream(self, data: bytes = b"") -> None:
        """Its end."""
        self._end(len(data), lambda client: client.end_stream(data))

    def cut(self) -> None:
        """No answer comes: every reader sees its connection close, and the key is free again."""
        readers = [*self._readers]
        self._readers.clear()
        self.complete = True
        self._finished(self)
        for reader in readers:
            reader.cut()

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
    """A connection that reads a tape: its leaving and lagging stop nobody."""

    def __init__(self, tape: RecordedResponse, connection: ClientResponder) -> None:
        self._tape = tape
        self._connection = connection

    def client_gone(self) -> None:
        self._tape.leave(self._connection)

    def client_slow(self) -> None:
        """It lags by at most one answer, which is kept anyway; the server cuts who reads nothing."""

    def client_ready(self) -> None:
        """It caught up."""


@dataclass(slots=True)
class _Entry:
    digest: bytes
    tape: RecordedResponse
    finished_at: float | None = None


class IdempotencyCache:
    """The answers that may be asked for again, by caller (:attr:`Key.scope`) and Idempotency-Key.

    The caller is an API key and the end user behind it: another key of the same user may not be allowed this model,
    or be revoked while the answer is made, and another end user must not read it.
    """

    def __init__(self, keep_s: float, clock: Callable[[], float]) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self._entries: OrderedDict[tuple[str, bytes], _Entry] = OrderedDict()
        self._bytes = 0

    def find(self, owner: str, key: bytes, path: str, body: bytes) -> RecordedResponse | None:
        """The tape of this very request; ``None`` when it is new.

        Raises :class:`IdempotencyError` where the key stands for another request, :class:`InvalidRequestError`
        where it is none.
        """
        if not 0 < len(key) <= MAX_KEY:
            raise InvalidRequestError(f"Idempotency-Key has {len(key)} bytes; use 1 to {MAX_KEY}")
        self._expire()
        entry = self._entries.get((owner, key))
        if entry is None:
            return None
        if entry.digest != _digest(path, body):
            raise IdempotencyError("This Idempotency-Key was used for another request; take a new one")
        return entry.tape

    def record(self, owner: str, key: bytes, path: str, body: bytes) -> RecordedResponse:
        """A new tape for this request."""
        name = (owner, key)
        tape = RecordedResponse(lambda tape: self._finish(name, tape))
        self._entries[name] = _Entry(_digest(path, body), tape)
        return tape

    def _finish(self, name: tuple[str, bytes], tape: RecordedResponse) -> None:
        entry = self._entries.get(name)
        if entry is None or entry.tape is not tape:
            return
        if tape.exchange is None or not tape.exchange.repeatable:
            # A failure is not an answer: who asks again shall have another try.
            del self._entries[name]
            return
        entry.finished_at = self._clock()
        self._entries.move_to_end(name)
        self._bytes += tape.size
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
            self._bytes -= entry.tape.size
        for name in stale:
            del self._entries[name]


def _digest(path: str, body: bytes) -> bytes:
    return blake2b(body, key=path.encode()[:64], digest_size=16).digest()
