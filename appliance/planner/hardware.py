"""The machines to plan for: cards, RAM, processor, power limit, network."""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.catalog.cards import Card, find_card
from appliance.catalog.processors import Cpu
from appliance.errors import UsageError
from appliance.planner.learned import MeasuredPoint

MAX_CARDS = 8
MAX_MACHINES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareSpec:
    """A host: equal cards, and possibly further cards of another kind."""

    name: str
    cards: tuple[Card, ...]
    ram_gib: float
    cpu: Cpu
    power_w: float | None = None
    link_gb_s: float = 3.0
    """Network to the other machines, GB/s in one direction (25 Gbit/s)."""
    measured: tuple[MeasuredPoint, ...] = ()
    """Measurements of this machine; they correct the predictions of their models."""

    def measured_of(self, model: str, card: Card) -> tuple[MeasuredPoint, ...]:
        """Return the measurements of the catalog's ``model`` on ``card``."""
        return tuple(point for point in self.measured if point.model == model and point.card == card.name)


def parse_cards(text: str) -> tuple[Card, ...]:
    """Return the cards of ``2x RTX PRO 6000 Blackwell Workstation``; commas separate several kinds.

    The sign between number and card is ``x``, ``*`` or the multiplication sign. Raises :class:`UsageError` for an
    unknown card, and for a number outside 1 to 64.
    """
    found: list[Card] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(-?\d+)\s*[x*\u00d7]\s*)?(.+?)\s*", part)
        if match is None:
            raise UsageError(f"cards = {text!r} names no card; write '2x RTX PRO 6000 Blackwell Workstation'")
        count = int(match.group(1) or 1)
        if not 1 <= count <= 64:
            raise UsageError(f"{count} cards are out of range; nearest valid: {min(max(count, 1), 64)}")
        found += [find_card(match.group(2))] * count
    return tuple(found)
