"""Keeps the fans at the wanted speeds, with one bounded child at a time."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from appliance.system.bounded_child import BoundedChild, ChildResult
from appliance.watch.gpu import fans

LOG = logging.getLogger(__name__)

TIMEOUT_S = 10.0
RETRY_S = 60.0
"""Seconds between two attempts that a card refused."""


def fan_command(card: int, speed: int | None) -> list[str]:
    """Return the command that sets the fans of ``card`` to ``speed`` percent, or to the driver's own control."""
    return [sys.executable, "-I", str(Path(fans.__file__)), str(card), fans.AUTO if speed is None else str(speed)]


class FanControl:
    """The fans of the cards. A card starts with unknown speed, so the first :meth:`tick` sets it."""

    def __init__(self, cards: Iterable[int]) -> None:
        self._child = BoundedChild()
        self._applied: dict[int, int | None] = {}
        self._cards = sorted(cards)
        self._setting: tuple[int, int | None] | None = None
        self._retry_at: dict[int, float] = {}
        self.failures: dict[int, str] = {}
        """Why the fans of a card are not at their speed, by card."""

    def tick(self, wanted: Mapping[int, int]) -> None:
        """Take the result of the child, and set the next card whose fans differ from ``wanted``."""
        result = self._child.poll()
        if result is not None and self._setting is not None:
            self._finish(*self._setting, result)
        if self._child.busy:
            return
        now = time.monotonic()
        for card in self._cards:
            speed = wanted.get(card)
            # Without an entry, the speed is unknown.
            if self._applied.get(card, -1) != speed and now >= self._retry_at.get(card, now):
                self._setting = (card, speed)
                self._child.start(fan_command(card, speed), timeout_s=TIMEOUT_S)
                return

    def restore(self, seconds: float) -> None:
        """Return all fans to the driver's own control, in at most ``seconds``: at the end of the program."""
        until = time.monotonic() + seconds
        self._retry_at.clear()
        while time.monotonic() < until:
            self.tick({})
            if not self._child.busy:
                return
            time.sleep(0.01)

    def _finish(self, card: int, speed: int | None, result: ChildResult) -> None:
        self._setting = None
        if result.ok:
            if speed is not None or self._applied.get(card) is not None:
                LOG.info("card %d: fans %s", card, "by the driver" if speed is None else f"at {speed} %")
            self._applied[card] = speed
            self.failures.pop(card, None)
            return
        reason = "timed out" if result.timed_out else (result.output.strip().splitlines() or ["failed"])[-1][:200]
        if self.failures.get(card) != reason:
            LOG.warning("card %d: the fans cannot be set: %s", card, reason)
        self.failures[card] = reason
        self._retry_at[card] = time.monotonic() + RETRY_S
