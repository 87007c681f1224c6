"""The agents produce the metrics that alerts and dashboards use: names, labels and types of their registries."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from appliance.watch import alerts, metric_names
from appliance.watch.metric_names import SourceName


def imported(name: str) -> ModuleType:
    """Return a module of an agent; skip the test on a tree without it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        pytest.skip(f"NOT CHECKED: {name} is absent")


def produced(registry: Any) -> dict[str, tuple[set[str], str]]:
    """Return labels and type by name of each series in ``registry``."""
    return {
        sample.name: (set(sample.labels), family.type)
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def gpu_watch() -> Any:
    metrics = imported("appliance.watch.gpu.metrics")
    reader, state = imported("appliance.watch.gpu.card_reader"), imported("appliance.watch.gpu.state")
    card = reader.CardReading(
        index=0, bus="01:00.0", name="", temperature_c=60, margin_c=20, power_w=300, limit_w=450, fan_ratio=0.6,
        memory_used=1, memory_total=2, utilization=0.5, throttle_s={"heat": 1.0}, ecc_uncorrected=0,
    )  # fmt: skip
    seen = state.WatchState(cards={0: state.CardState()}, xids={"0:13": 1})
    return metrics.registry([card], seen, looked_at=1.0, hangs=False, act=False)


def power() -> Any:
    metrics, policy = imported("appliance.watch.power.metrics"), imported("appliance.watch.power.policy")
    reading = policy.UpsReading(status=frozenset({"OL"}), charge=1.0, runtime_s=840.0, load=0.5)
    return metrics.registry(policy.PowerState(), reading, 1.0)


def notify() -> Any:
    service = imported("appliance.watch.notify")
    status = service.NotifyStatus(at=1.0, waiting=0, due_since=None, refused=0)
    return service.registry(status, imported("appliance.watch.courier").DeliveryCounts())


def backup() -> Any:
    report = imported("appliance.watch.backup.report")
    record = report.RunRecord(started_at=1.0, last_success=1.0, size_bytes=1, failed={"backup": "x"})
    state = report.BackupState({"vps": record}, report.DrillRecord(last_success=1.0), "tank", "ONLINE", 0.0)
    return report.registry(state)


@pytest.mark.parametrize(
    ("source", "registry"), [("gpu_watch", gpu_watch), ("power", power), ("notify", notify), ("backup", backup)]
)
def test_an_agent_produces_the_metrics_of_the_list(source: SourceName, registry: Any) -> None:
    found = produced(registry())
    for metric in metric_names.of(source):
        assert metric.name in found, f"{source} has no {metric.name}, which alerts or dashboards may use"
        assert found[metric.name] == (set(metric.labels), metric.kind), metric.name


def test_the_normal_reason_of_a_lower_clock_raises_nothing() -> None:
    """The expression names the watchdog's own word for a power cap."""
    reader = imported("appliance.watch.gpu.card_reader")
    alert = next(one for one in alerts.ALERTS if one.name == "CardThrottles")
    assert f'reason!="{reader.COUNTERS["sw_power_cap"]}"' in alert.expr


def test_a_difference_is_found() -> None:
    assert produced(CollectorRegistry()) == {}
