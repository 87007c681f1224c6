"""The looks of a benchmark at its host: the gateway, the cards, the supply."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from appliance.bench.guard import GuardLook
from appliance.errors import RequestError, StartError
from appliance.gateway import control_client
from appliance.system.nvidia_smi import GpuQuery, GpuRow, NvidiaSmiError
from appliance.watch.power.agent import RUN, read_public

FRESH_S = 30.0
"""Age in seconds above which the state of the power agent does not count."""

FIELDS = ("index", "name", "driver_version", "temperature.gpu", "power.limit")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The cards of the measured engine: their names, the driver, the temperature of the hottest one, the limits.

    ``limits`` are watts by card.
    """

    names: str = ""
    driver: str = ""
    temperature_c: float | None = None
    limits: tuple[tuple[int, float], ...] = ()


class BenchHost:
    """A host with a gateway whose data folder is ``data``, and the ``cards`` of the measured engine.

    ``power_run`` is the folder of the power agent.
    """

    def __init__(self, data: Path, cards: Collection[int], power_run: Path = RUN) -> None:
        self._data = data
        self._cards = frozenset(cards)
        self._power_run = power_run
        self._query = GpuQuery(FIELDS)

    def look(self, ours: int) -> GuardLook:
        """Return a look while ``ours`` requests of the benchmark run."""
        local = time.localtime()
        minute = local.tm_hour * 60 + local.tm_min
        power = read_public(self._power_run)
        on_battery = power is not None and power[1] <= FRESH_S and power[0].on_battery
        hottest = self.cards().temperature_c
        try:
            status = control_client.status(self._data)
        except (StartError, RequestError) as error:
            return GuardLook(minute=minute, temperature_c=hottest, on_battery=on_battery, problem=str(error))
        waiting = sum(int(one["waiting"]) for one in status["models"].values())
        running = int(status["in_flight"])
        problem = f"the gateway is paused: {status['paused']}" if status["paused"] is not None else ""
        return GuardLook(
            minute=minute,
            # Our own requests may wait as well: then all of them are in flight.
            others=max(0, running - ours),
            waiting=waiting if running > ours else 0,
            temperature_c=hottest,
            on_battery=on_battery,
            problem=problem,
        )

    def cards(self) -> CardFacts:
        """Return the facts of the cards; all are empty if nvidia-smi is missing or fails."""
        if not self._cards:
            return CardFacts()
        try:
            rows = [row for row in self._query.rows() if row.integer("index") in self._cards]
        except NvidiaSmiError:
            return CardFacts()
        if not rows:
            return CardFacts()
        heat = [value for row in rows if (value := row.number("temperature.gpu")) is not None]
        return CardFacts(
            names=f"{len(rows)} x {rows[0].text('name')}",
            driver=rows[0].text("driver_version"),
            temperature_c=max(heat, default=None),
            limits=tuple(_limits(rows)),
        )


def _limits(rows: list[GpuRow]) -> list[tuple[int, float]]:
    found = []
    for row in rows:
        index, limit = row.integer("index"), row.number("power.limit")
        if index is not None and limit is not None:
            found.append((index, limit))
    return sorted(found)
