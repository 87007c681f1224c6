"""Reads the status that the watchdog of the cards writes every few seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.doctor.host import HostReader

WATCH_STATUS = "/run/appliance-gpu-watch/status.json"


@dataclass(frozen=True, slots=True)
class Cooling:
    """The reserve of the cooling of a card, as the watchdog sees it. ``None``: the card does not report it."""

    index: int
    margin_c: float | None
    fan_ratio: float | None


@dataclass(frozen=True, slots=True)
class CardWatch:
    """The watchdog: the time of its status in Unix seconds, whether it acts, and the cooling of each card."""

    at: float
    act: bool
    cards: tuple[Cooling, ...]


def read_card_watch(host: HostReader) -> CardWatch | None:
    """Return the status of the watchdog of ``host``; ``None`` if the file is missing or not valid."""
    try:
        state = json.loads(host.text(WATCH_STATUS) or "")
        cards = tuple(
            Cooling(int(one["index"]), _number(one, "margin_c"), _number(one, "fan_ratio"))
            for one in state["cards"]
        )
        return CardWatch(float(state["at"]), bool(state["act"]), cards)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _number(card: Mapping[str, Any], name: str) -> float | None:
    value = card.get(name)
    return None if value is None else float(value)
