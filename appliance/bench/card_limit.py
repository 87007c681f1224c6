"""The power limits of a benchmark, as a wish that the agents of the host apply.

A benchmark never sets a limit itself. Its wish ends with its process, also if that is killed. The agent that
owns the limits then skips the wish at its next look, and restores them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path

from appliance.bench.host import BenchHost
from appliance.errors import StartError, UsageError
from appliance.system.stopping import Stop
from appliance.watch.card_power import FOLDER, HeldWish, PowerRange

AGENT = "bench"
APPLY_S = 30.0
"""Seconds within which an agent applies a wish; it looks every second."""

WITHDRAWN_S = 3.0
"""Seconds for the agents to restore the limits of the site."""

POLL_S = 0.2


def check_powers(powers: Collection[int], cards: Collection[int], ranges: Mapping[int, PowerRange]) -> None:
    """Raise :class:`UsageError` for a limit that a card of the engine does not allow."""
    if powers and not cards:
        raise UsageError("--power: this engine uses no cards; omit it")
    for card in cards:
        allowed = ranges.get(card)
        for watts in powers:
            if allowed is None:
                raise UsageError(f"--power: the catalog has no limits of card {card}; omit it")
            if not allowed.floor <= watts <= allowed.limit:
                nearest = min(max(watts, allowed.floor), allowed.limit)
                raise UsageError(
                    f"--power {watts}: card {card} allows {allowed.floor} to {allowed.limit} W on this site; "
                    f"nearest: {nearest}"
                )


class CardLimit:
    """Sets the limit of the ``cards`` of an engine by the wish ``held``."""

    def __init__(self, host: BenchHost, cards: Collection[int], held: HeldWish, apply_s: float = APPLY_S) -> None:
        self._host = host
        self._cards = tuple(cards)
        self._held = held
        self._apply_s = apply_s
        self._watts: int | None = None

    def set(self, watts: int | None, stop: Stop) -> None:
        """Wait until each card has the limit ``watts``; None withdraws the wish.

        Raises :class:`StartError` if no agent applies it.
        """
        if watts == self._watts:
            return
        self._watts = watts
        self._held.set({} if watts is None else dict.fromkeys(self._cards, watts))
        if watts is None:
            # The limit of the site may equal that of the cell before, so that its change cannot be awaited.
            stop.wait(WITHDRAWN_S)
            return
        until = time.monotonic() + self._apply_s
        while not self._applied(watts):
            if stop.wait(POLL_S):
                return
            if time.monotonic() >= until:
                raise StartError(
                    f"no agent limits the cards to {watts} W; start appliance-gpu-watch or appliance-power, "
                    "or omit --power"
                )

    def _applied(self, watts: int) -> bool:
        limits = self._host.cards().limits
        return len(limits) == len(self._cards) and all(abs(limit - watts) < 1.0 for _, limit in limits)


def wish(folder: Path = FOLDER) -> HeldWish:
    """Return the wish of a benchmark in ``folder``."""
    return HeldWish(folder, AGENT)
