"""A console whose reader may leave: a closed terminal or a finished pipe ends the output, never the run."""

from __future__ import annotations

import os
import sys
from typing import IO, TextIO, cast

from rich.console import Console


class _Lasting:
    """Standard output until writing fails; from then on, nothing is written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def _give_up(self) -> None:
        # The buffer still holds what could not be written: it goes to /dev/null, now or when the process ends.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


def console() -> Console:
    """A console on standard output for a long run."""
    return Console(file=cast("IO[str]", _Lasting(sys.stdout)), highlight=False)
