"""The agents produce the metrics that alerts and dashboards use: names, labels and types of their registries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.metrics import MemoryMetrics
from appliance.assistant.web.metrics import WebMetrics
from appliance.contract.backup import DrillRecord, RunRecord
from appliance.telegram.metrics import BotMetrics
from appliance.watch import alerts, courier, metric_names, notify
from appliance.watch.backup import report
from appliance.watch.gpu import card_reader, state
from appliance.watch.gpu import metrics as gpu_metrics
from appliance.watch.metric_names import SourceName
from appliance.watch.power import metrics as power_metrics
from appliance.watch.power.policy import PowerState
from appliance.watch.power.reading import UpsReading


def produced(registry: CollectorRegistry) -> dict[str, tuple[set[str], str]]:
    """Return labels and type by name of each series in ``registry``."""
    return {
        sample.name: (set(sample.labels), family.type)
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def of_gpu_watch() -> CollectorRegistry:
    card = card_reader.CardReading(
        index=0, bus="01:00.0", name="", temperature_c=60, margin_c=20, power_w=300, limit_w=450, fan_ratio=0.6,
        memory_used=1, memory_total=2, utilization=0.5, throttle_s={"heat": 1.0}, ecc_uncorrected=0,
    )  # fmt: skip
    seen = state.WatchState(cards={0: state.CardState()}, xids={"0:13": 1})
    return gpu_metrics.registry([card], seen, looked_at=1.0, hangs=False, act=False)


def of_power() -> CollectorRegistry:
    reading = UpsReading(status=frozenset({"OL"}), charge=1.0, runtime_s=840.0, load=0.5)
    return power_metrics.registry(PowerState(), reading, 1.0)


def of_notify() -> CollectorRegistry:
    status = notify.NotifyStatus(at=1.0, waiting=0, due_since=None, refused=0)
    return notify.registry(status, courier.DeliveryCounts())


def of_backup() -> CollectorRegistry:
    record = RunRecord(started_at=1.0, last_success=1.0, size_bytes=1, failed={"backup": "x"})
    drill = DrillRecord(last_success=1.0)
    return report.registry(report.BackupState({"vps": record}, drill, "tank", "ONLINE", 0.0))


def of_assistant() -> CollectorRegistry:
    made = MemoryMetrics(cast("AssistantContext", None))
    made.searches.labels("found").inc()
    WebMetrics(cast("AssistantContext", SharedMetrics(made)))
    return made.registry


@dataclass
class SharedMetrics:
    """The part of the assistant's context that the metrics of web search use."""

    made: MemoryMetrics

    def shared(self, kind: type[MemoryMetrics]) -> MemoryMetrics:
        assert isinstance(self.made, kind)
        return self.made


def of_telegram() -> CollectorRegistry:
    from appliance.telegram.channel import Accepted

    made = BotMetrics()
    made.count_call("send", Accepted())
    return made.registry


REGISTRIES: Mapping[SourceName, Callable[[], CollectorRegistry]] = {
    "gpu_watch": of_gpu_watch, "power": of_power, "notify": of_notify, "backup": of_backup,
    "assistant": of_assistant, "telegram": of_telegram,
}  # fmt: skip


@pytest.mark.parametrize("source", REGISTRIES)
def test_an_agent_produces_the_metrics_of_the_list(source: SourceName) -> None:
    found = produced(REGISTRIES[source]())
    for metric in metric_names.of(source):
        assert metric.name in found, f"{source} has no {metric.name}, which alerts or dashboards may use"
        assert found[metric.name] == (set(metric.labels), metric.kind), metric.name


def test_the_normal_reason_of_a_lower_clock_raises_nothing() -> None:
    """The expression names the watchdog's own word for a power cap."""
    alert = next(one for one in alerts.ALERTS if one.name == "CardThrottles")
    assert f'reason!="{card_reader.COUNTERS["sw_power_cap"]}"' in alert.expr


def test_a_difference_is_found() -> None:
    assert produced(CollectorRegistry()) == {}
