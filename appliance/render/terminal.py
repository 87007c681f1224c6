"""Consoles on standard output, by what a reader that leaves means for the command.

:class:`Console` is for short commands: a closed pipe ends them. :func:`long_run_console` is for long runs: a closed
terminal or a finished pipe ends the output, never the run.
"""

from __future__ import annotations

import os
import sys
from typing import IO, NoReturn, TextIO, cast

import rich.console


class Console(rich.console.Console):
    """A console that passes a closed pipe on to :func:`appliance.cli.main`, where rich would exit with 1."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise the error again: the reader has read enough."""
        raise BrokenPipeError


def long_run_console() -> rich.console.Console:
    """Return a console on standard output that discards all text after the first failed write."""
    return rich.console.Console(file=cast("IO[str]", _UntilBroken(sys.stdout)), highlight=False)


class _UntilBroken:
    """A text stream that discards all text once a write has failed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._discard()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def _discard(self) -> None:
        # The buffer still holds the text that failed: /dev/null takes it, now or when the process ends.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
