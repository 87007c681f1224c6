"""A watcher of transfers that adds up the bytes."""

from __future__ import annotations


class Quiet:
    """Prints nothing."""

    def __init__(self) -> None:
        self.bytes = 0
        self.discarded: list[int] = []

    def begin(self, total: int, present: int) -> None:
        self.bytes += present

    def start_file(self, line: str) -> None:
        pass

    def advance(self, count: int) -> None:
        self.bytes += count
        if count < 0:
            self.discarded.append(-count)
