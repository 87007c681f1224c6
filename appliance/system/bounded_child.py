"""A child process that cannot stop its parent: one at a time, with a deadline, and never waited for.

A program that hangs inside a driver ignores every signal, SIGKILL included. The parent then leaves it, reports it,
and starts no second one.

| state | event | next state |
|---|---|---|
| idle | :meth:`BoundedChild.start` | running |
| running | the child ends | idle; :meth:`BoundedChild.poll` returns its result |
| running | the deadline passes | terminated: SIGTERM was sent to its process group |
| terminated | the child ends | idle; the result is that of a timeout |
| terminated | :data:`KILL_AFTER_S` pass | killed: SIGKILL was sent |
| killed | the child ends | idle; the result is that of a timeout |
| killed | :data:`KILL_AFTER_S` pass | hanging |
| hanging | the child ends | idle; the result is that of a timeout |
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

KILL_AFTER_S = 1.0
"""Seconds that a child has to end after SIGTERM, and again after SIGKILL."""

MAX_OUTPUT = 1_000_000
"""Bytes of the output that are kept."""

NOT_STARTED = 127
"""Exit code of a program that does not exist or cannot be started, as in shells."""


@dataclass(frozen=True, slots=True)
class ChildResult:
    """The end of a child: exit code (negative: a signal), both output streams as one text, whether it timed out."""

    code: int
    output: str
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """Whether the child succeeded in time."""
        return self.code == 0 and not self.timed_out


class BoundedChild:
    """One child process at a time.

    Example::

        child = BoundedChild()
        child.start(["nvidia-smi", "-L"], timeout_s=5.0)
        while (result := child.poll()) is None and not child.hanging:
            time.sleep(0.1)
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._result: ChildResult | None = None
        self._output = -1
        self._deadline = 0.0
        self._signalled = 0

    @property
    def busy(self) -> bool:
        """Whether a child runs or hangs, or its result was not taken by :meth:`poll`."""
        return self._process is not None or self._result is not None

    @property
    def hanging(self) -> bool:
        """Whether the child survived SIGKILL: it hangs inside the kernel."""
        return self._process is not None and self._signalled == 2 and time.monotonic() >= self._deadline

    @property
    def pid(self) -> int | None:
        """Process id of the child; ``None`` without one."""
        return None if self._process is None else self._process.pid

    def start(self, argv: Sequence[str], *, timeout_s: float) -> bool:
        """Start ``argv`` and return whether it was started: not while another child of this object is busy.

        A program that cannot be started has a result with code :data:`NOT_STARTED`.
        """
        if self.busy:
            return False
        path = shutil.which(argv[0])
        if path is None:
            self._result = ChildResult(NOT_STARTED, f"{argv[0]} is not installed")
            return True
        output = os.memfd_create("output", os.MFD_CLOEXEC)
        try:
            # A file in memory instead of a pipe: neither side can block on it.
            self._process = subprocess.Popen(
                [path, *argv[1:]], stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
            )
        except OSError as error:
            os.close(output)
            self._result = ChildResult(NOT_STARTED, f"{path} cannot be started: {error.strerror or error}")
            return True
        self._output, self._signalled = output, 0
        self._deadline = time.monotonic() + timeout_s
        return True

    def poll(self) -> ChildResult | None:
        """Return the result of the child, once; ``None`` while it runs or hangs. Never blocks."""
        process = self._process
        if process is not None:
            code = process.poll()
            if code is None:
                self._signal(process)
                return None
            text = os.pread(self._output, MAX_OUTPUT, 0).decode("utf-8", "replace")
            os.close(self._output)
            self._result = ChildResult(code, text, timed_out=self._signalled > 0)
            self._process = None
        result, self._result = self._result, None
        return result

    def wait(self, seconds: float) -> ChildResult | None:
        """Poll for at most ``seconds``; return the result, or ``None`` if there is none by then."""
        until = time.monotonic() + seconds
        while (result := self.poll()) is None and self._process is not None and time.monotonic() < until:
            time.sleep(0.01)
        return result

    def cancel(self) -> None:
        """Send SIGKILL to the child, if there is one, and leave it."""
        if self._process is not None and self._process.poll() is None:
            self._kill(self._process, signal.SIGKILL)

    def _signal(self, process: subprocess.Popen[bytes]) -> None:
        if self._signalled < 2 and time.monotonic() >= self._deadline:
            self._kill(process, signal.SIGKILL if self._signalled else signal.SIGTERM)
            self._signalled += 1
            self._deadline = time.monotonic() + KILL_AFTER_S

    @staticmethod
    def _kill(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        # The whole group, so that programs which it started end with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
