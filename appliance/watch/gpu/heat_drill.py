"""A drill of the watchdog for heat: its own decisions over simulated hot cards. Nothing is applied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from appliance.watch.gpu.card_reader import CardReading
from appliance.watch.gpu.decide import LOOKS, decide, targets
from appliance.watch.gpu.state import Observation, WatchConfig, WatchReport, WatchState, WatchTargets

COLD_C, HOT_C = 40.0, 95.0
COLD_MARGIN_C, HOT_MARGIN_C = 40.0, 1.0
"""Simulated temperatures and margins: cool, and above each threshold of :func:`.decide.heat_level`."""

LOOK_S, COOL_LOOK_S = 5.0, 60.0
STEPS = 600
"""Looks at hot cards: 50 minutes, more than the ladder of a card needs with 600 W and steps of 50 W."""


@dataclass(frozen=True, slots=True)
class HeatDrill:
    """The requirements that failed, and the reactions of the watchdog by card."""

    failed: tuple[str, ...]
    steps: tuple[str, ...]


def run_heat_drill(config: WatchConfig) -> HeatDrill:
    """Let every card of ``config`` overheat and cool down, and return what the watchdog decides.

    For each card it requires a notice, the lowest power limit, and no new requests for its replicas. When the cards
    are cool, all of it must be back. In report-only mode it requires a notice, and no change.
    """
    failed, steps = [], []
    acting = _overheat(replace(config, act=True))
    for index in sorted(config.cards):
        own = [name for name, replica in config.replicas.items() if index in replica.cards]
        if not acting.hot_reports(index):
            failed.append(f"card {index}: no notice about the heat")
        if config.fans and index not in acting.fans:
            failed.append(f"card {index}: its fans stay as they are")
        if index in config.ranges and acting.watts.get(index) != config.ranges[index].floor:
            failed.append(f"card {index}: its power limit does not fall to {config.ranges[index].floor} W")
        failed += [f"{name}: it gets new requests on a hot card" for name in own if name not in acting.drains]
        did = [f"fans {acting.fans[index]} %"] if index in acting.fans else []
        did += [f"{acting.watts[index]} W"] if index in acting.watts else []
        did += [f"no new requests for {', '.join(own)}"] if own else []
        steps.append(f"card {index}: {', '.join(['a notice', *did])}")
    if acting.after != WatchTargets():
        failed.append("something stays changed after the cards have cooled down")
    reporting = _overheat(replace(config, act=False))
    for index in sorted(config.cards):
        if not reporting.hot_reports(index):
            failed.append(f"card {index}: no notice in report-only mode")
    if reporting.fans or reporting.watts or reporting.drains:
        failed.append("report-only mode changes something")
    if not config.cards:
        failed.append("this host has no cards")
    return HeatDrill(tuple(failed), tuple(steps))


@dataclass(frozen=True, slots=True)
class _Course:
    """The strongest targets while the cards were hot, the targets after they were cool, and all notices."""

    fans: dict[int, int]
    watts: dict[int, int]
    drains: dict[str, str]
    after: WatchTargets
    reports: tuple[WatchReport, ...]

    def hot_reports(self, index: int) -> list[WatchReport]:
        return [one for one in self.reports if (one.kind, one.subject) == ("card-hot", f"card {index}")]


def _overheat(config: WatchConfig) -> _Course:
    state, reports = WatchState(), list[WatchReport]()
    fans, watts, drains = dict[int, int](), dict[int, int](), dict[str, str]()
    for observation in _observations(config):
        decision = decide(state, observation, config)
        state = decision.state
        reports += decision.reports
        wanted = targets(state, config)
        fans.update({card: max(speed, fans.get(card, 0)) for card, speed in wanted.fans.items()})
        watts.update({card: min(limit, watts.get(card, limit)) for card, limit in wanted.watts.items()})
        drains.update(wanted.drains)
    return _Course(fans, watts, drains, targets(state, config), tuple(reports))


def _observations(config: WatchConfig) -> Iterator[Observation]:
    """Yield looks at cool cards, at hot ones, and again at cool ones for as long."""
    for number in range(LOOKS + 2 * STEPS):
        hot = LOOKS <= number < LOOKS + STEPS
        cards = tuple(
            CardReading(
                index=index,
                bus=f"0000:{index:02x}:00.0",
                temperature_c=HOT_C if hot else COLD_C,
                margin_c=HOT_MARGIN_C if hot else COLD_MARGIN_C,
            )
            for index in sorted(config.cards)
        )
        # A step back takes minutes: looks at cards that cool down are further apart.
        now = min(number, LOOKS + STEPS) * LOOK_S + max(0, number - LOOKS - STEPS) * COOL_LOOK_S
        yield Observation(now=now, boot_id="drill", uptime_s=now, cards=cards)
