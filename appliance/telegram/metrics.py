"""Counters of the bot, as a file for node_exporter: the bot has no port."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from appliance.errors import StoreError
from appliance.system.metrics_file import write_metrics
from appliance.telegram.channel import Accepted, CallOutcome, Declined, NotAccepted, Throttled

LOG = logging.getLogger(__name__)
EVERY_S = 15.0


class BotMetrics:
    """The counters; labels have few values and never a text or an id."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.updates = self._counter("updates", "Updates of Telegram, by whether they were new.", "state")
        self.calls = self._counter("calls", "Calls of the Bot API by kind and outcome.", "kind", "outcome")
        self.turns = self._counter("turns", "Turns by the end of their response.", "end")
        self.polls_failed = self._counter("polls_failed", "Failed requests for updates.")
        self.last_poll = Gauge(
            "appliance_telegram_last_poll_timestamp_seconds",
            "Time of the last successful request for updates.",
            registry=self.registry,
        )

    def count_call(self, kind: str, outcome: CallOutcome) -> None:
        """Count a call of ``kind``: send, edit, draft, file, topic or other."""
        self.calls.labels(kind, _label(outcome)).inc()

    async def write_forever(self, file: Path) -> None:
        """Write ``file`` every :data:`EVERY_S` seconds until cancelled."""
        reported = False
        while True:
            try:
                await asyncio.to_thread(write_metrics, file, self.registry)
                reported = False
            except StoreError as error:
                if not reported:
                    LOG.warning("the metrics are not written: %s", error)
                reported = True
            await asyncio.sleep(EVERY_S)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"appliance_telegram_{name}", text, labels, registry=self.registry)


def _label(outcome: CallOutcome) -> str:
    if isinstance(outcome, Accepted):
        return "accepted"
    if isinstance(outcome, Throttled):
        return "throttled"
    if isinstance(outcome, NotAccepted):
        return "not_accepted"
    return "declined" if isinstance(outcome, Declined) else "unconfirmed"
