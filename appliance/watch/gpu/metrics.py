"""The watchdog's metrics, in a file for node_exporter's textfile collector."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.errors import StoreError
from appliance.system.metrics_file import write_metrics
from appliance.watch.gpu.card_reader import CardReading
from appliance.watch.gpu.state import WatchState

LOG = logging.getLogger(__name__)

PREFIX = "appliance_gpu_"
GAUGES = {
    "temperature_celsius": ("temperature_c", "Temperature of the card."),
    "temperature_margin_celsius": ("margin_c", "Degrees that are left until the card throttles."),
    "power_watts": ("power_w", "Power that the card draws."),
    "power_limit_watts": ("limit_w", "Power limit in force."),
    "fan_ratio": ("fan_ratio", "Speed of the fans."),
    "memory_used_bytes": ("memory_used", "Used memory of the card."),
    "memory_total_bytes": ("memory_total", "Memory of the card."),
    "utilization_ratio": ("utilization", "Share of the time in which the card computed."),
}
"""Gauges by name: the field of a reading, and a help text."""


class _Counters(Collector):
    def __init__(self, cards: Iterable[CardReading], state: WatchState) -> None:
        self._cards = list(cards)
        self._state = state

    def collect(self) -> Iterable[Metric]:
        throttle = CounterMetricFamily(
            f"{PREFIX}throttle_seconds", "Seconds with a lower clock since the driver was loaded.",
            labels=["card", "reason"],
        )  # fmt: skip
        ecc = CounterMetricFamily(
            f"{PREFIX}ecc_uncorrected", "Uncorrected memory errors since the driver was loaded.", labels=["card"]
        )
        xids = CounterMetricFamily(
            f"{PREFIX}xids", "Errors of the driver in the kernel's log of this boot.", labels=["card", "xid"]
        )
        for card in self._cards:
            for reason, seconds in card.throttle_s.items():
                throttle.add_metric([str(card.index), reason], seconds)
            if card.ecc_uncorrected is not None:
                ecc.add_metric([str(card.index)], card.ecc_uncorrected)
        for key, count in self._state.xids.items():
            index, _, number = key.partition(":")
            xids.add_metric([index, number], count)
        return throttle, ecc, xids


def registry(
    cards: Iterable[CardReading], state: WatchState, *, looked_at: float, hangs: bool, act: bool
) -> CollectorRegistry:
    """Return the metrics of the last look, which ended at ``looked_at`` (seconds since the epoch)."""
    cards, found = list(cards), CollectorRegistry()
    found.register(_Counters(cards, state))
    for name, (attribute, text) in GAUGES.items():
        gauge = Gauge(PREFIX + name, text, ["card"], registry=found)
        for card in cards:
            value = getattr(card, attribute)
            if value is not None:
                gauge.labels(str(card.index)).set(value)
    rung = Gauge(f"{PREFIX}rung", "Step of the watchdog's ladder; 0 is none, 7 degraded.", ["card"], registry=found)
    for index, one in state.cards.items():
        rung.labels(str(index)).set(one.rung)
    plain = {
        "watch_driver_hangs": ("Whether nvidia-smi hangs inside the driver.", float(hangs)),
        "watch_last_look_timestamp_seconds": ("Time of the last look at the cards.", looked_at),
        "watch_acting": ("Whether the watchdog acts, or reports only.", float(act)),
    }
    for name, (text, value) in plain.items():
        Gauge(PREFIX + name, text, registry=found).set(value)
    return found


class MetricsFile:
    """The file of the metrics. A folder that does not exist is an observer that is not installed: no error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failing = False

    def write(self, metrics: CollectorRegistry) -> None:
        """Replace the file; the log has a new failure once."""
        try:
            if self._path.parent.is_dir():
                write_metrics(self._path, metrics)
            self._failing = False
        except StoreError as error:
            if not self._failing:
                LOG.warning("%s", error)
            self._failing = True
