"""The effect of one more card, another power limit or more RAM on the recommended plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from appliance.errors import UsageError
from appliance.planner.demand import Demand
from appliance.planner.hardware import MAX_CARDS, HardwareSpec
from appliance.planner.placement import Plan, advise


@dataclass(frozen=True, slots=True)
class Change:
    """One change to the first machine, and the best plan with it."""

    what: str
    plan: Plan | None
    """None if no plan would fit."""


def changes(machines: tuple[HardwareSpec, ...], demand: Demand) -> list[Change]:
    """Return the effects of one more card, of other power limits and of twice the RAM on the first machine."""
    first, rest = machines[0], machines[1:]
    tried: list[tuple[str, HardwareSpec]] = []
    if first.cards and len(first.cards) < MAX_CARDS:
        tried.append(
            (
                f"a further {first.cards[0].name}",
                dataclasses.replace(first, cards=(*first.cards, first.cards[0])),
            )
        )
    if first.cards:
        card = first.cards[0]
        for share in (0.5, 0.75, 1.0):
            watts = max(card.min_power_w, round(card.tdp_w * share / 50) * 50)
            if watts != first.power_w and (share < 1.0 or first.power_w is not None) and watts <= card.tdp_w:
                tried.append((f"{watts:.0f} W per card", dataclasses.replace(first, power_w=watts)))
    tried.append((f"{first.ram_gib * 2:.0f} GiB of RAM", dataclasses.replace(first, ram_gib=first.ram_gib * 2)))
    found = []
    for what, machine in tried:
        try:
            found.append(Change(what, advise((machine, *rest), demand).best))
        except UsageError:
            found.append(Change(what, None))
    return found
