"""Ends a long run when it receives SIGINT, SIGTERM or SIGHUP, at any moment.

A signal does not interrupt a long run at a random place: a :class:`Stop` records it, and the run checks that record
wherever it waits (:meth:`Stop.wait`). In a region marked with :meth:`Stop.until`, the signal raises
:class:`Stopped` at once; such a region waits for a server and holds nothing that needs cleaning up.

SIGINT counts even if this process inherited it as ignored, as every command that a script starts with ``&`` does.
SIGHUP does not if it was inherited as ignored: that is what nohup(1) is for.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import weakref
from collections.abc import Iterator
from typing import Any

BURST_S = 1.0
"""Seconds within which several signals count as one request.

When a terminal closes, kernel and shell both send SIGHUP. A wrapper passes on the SIGINT that Ctrl-C has already
sent to the whole group."""


class Stopped(BaseException):
    """A signal ended a region of :meth:`Stop.until`.

    Like KeyboardInterrupt, not an :class:`Exception`: a handler of a failed step must not treat it as a failure.
    """


class Stop:
    """A request to end, from a signal or from another thread; it cannot be withdrawn."""

    def __init__(self) -> None:
        self.count = 0
        """Number of requests so far: the second one means a faster end. A burst of signals is one request."""
        self.reason = ""
        """Name of the signal, or the reason of the other thread."""
        self._limit: int | None = None
        self._last = 0.0
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        weakref.finalize(self, _close, self._reader, self._writer)

    @property
    def requested(self) -> bool:
        """Whether the run must end."""
        return self.count > 0

    def request(self, reason: str) -> None:
        """Request the end of the run; safe in a signal handler and in any thread."""
        now = time.monotonic()
        if not self.count or now - self._last >= BURST_S:
            self.count += 1
            self._last = now
        self.reason = self.reason or reason
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def wait(self, seconds: float) -> bool:
        """Sleep for ``seconds``, or until the run must end; return whether it must."""
        select.select([self._reader], [], [], seconds)
        return self.requested

    def fileno(self) -> int:
        """Return a descriptor for select(2), which is readable from the first request on."""
        return self._reader

    @contextlib.contextmanager
    def until(self, times: int) -> Iterator[None]:
        """Let request number ``times`` raise :class:`Stopped` in this region, also if it was made earlier.

        For the main thread only, where Python runs signal handlers.
        """
        self._limit = times
        try:
            if self.count >= times:
                raise Stopped(self.reason)
            yield
        finally:
            self._limit = None

    def on_signal(self, number: int, _frame: Any) -> None:
        """Record one signal: the handler that :func:`listening` installs."""
        self.request(signal.Signals(number).name)
        if self._limit is not None and self.count >= self._limit:
            # Once: the same region must not raise again while it unwinds.
            self._limit = None
            raise Stopped(self.reason)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a long run of this process."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Yield a :class:`Stop` that records signals; restore the earlier handlers at the end."""
    stop, before = Stop(), {}
    try:
        for number in stop_signals():
            before[number] = signal.signal(number, stop.on_signal)
        # A caller may have blocked them; blocked signals arrive now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, before.keys())
        yield stop
    finally:
        for number, handler in before.items():
            # None: not a handler of Python, so Python cannot restore it.
            signal.signal(number, handler or signal.SIG_DFL)
