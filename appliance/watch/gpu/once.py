"""One look for people: the state of the cards, and what the watchdog would do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from appliance.catalog.xids import Xid, same_slot
from appliance.watch.gpu.card_reader import Look
from appliance.watch.gpu.decide import LOOKS, decide
from appliance.watch.gpu.state import Observation, ReplicaView, SeenXid, WatchConfig, WatchState


@dataclass(frozen=True, slots=True)
class Forecast:
    """Lines to print, and whether no card and no engine needs anything."""

    lines: tuple[str, ...]
    quiet: bool


def forecast(
    config: WatchConfig, look: Look, xids: Sequence[Xid], views: Mapping[str, ReplicaView] | None
) -> Forecast:
    """Return the result of one look, in which nothing needs a second look or a time to be confirmed."""
    lines = []
    for card in look.cards:
        figures = {
            "°C": card.temperature_c, "K margin": card.margin_c, "W": card.power_w, "W limit": card.limit_w,
            "% fans": None if card.fan_ratio is None else card.fan_ratio * 100,
        }  # fmt: skip
        shown = ", ".join(f"{value:.0f} {name}" for name, value in figures.items() if value is not None)
        lines.append(f"card {card.index} ({card.name} at {card.bus}): {shown or 'no figures'}")
    if look.error:
        lines.append(f"the cards cannot be read: {look.error}")
    for name, view in (views or {}).items():
        shown = "not loaded" if not view.loaded else "up" if view.up else "hangs" if view.timed_out else "down"
        lines.append(f"engine {name}: {shown}, {view.in_flight} requests")
    if views is None:
        lines.append("the gateway does not respond")
    config = replace(config, timing=replace(config.timing, hang_s=0.0))
    cards = None if look.error else look.cards
    found, state = [], WatchState()
    for number in range(LOOKS):
        seen = tuple(
            SeenXid(xid, next((card.index for card in look.cards if same_slot(card.bus, xid.bus)), None))
            for xid in (xids if number == 0 else ())
        )
        now = float(number)
        observation = Observation(now=now, boot_id="once", uptime_s=now, cards=cards, xids=seen, replicas=views)
        made = decide(state, observation, config)
        state = made.state
        found += [f"would report: {report.text}" for report in made.reports]
    return Forecast((*lines, *(found or ["nothing to do"])), not found and not look.error)
