"""The metrics of the power agent."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from appliance.watch.power.policy import PowerPhase, PowerState
from appliance.watch.power.reading import UpsReading


def registry(state: PowerState, ups: UpsReading | None, now: float) -> CollectorRegistry:
    """Return the metrics of one look at the Unix time ``now``; figures that the UPS does not report are absent."""
    made = CollectorRegistry()

    def gauge(name: str, text: str, value: float | None) -> None:
        if value is not None:
            Gauge(f"appliance_power_{name}", text, registry=made).set(value)

    gauge("on_battery", "1 while the UPS runs on its battery, by its last reading.", float(state.on_battery))
    gauge("ups_connected", "1 if the UPS was read at the last look.", float(ups is not None))
    gauge("last_look_timestamp_seconds", "Unix time of the last look at the UPS.", now)
    if ups is not None:
        gauge("battery_charge_ratio", "Charge of the battery, 0 to 1.", ups.charge)
        gauge("battery_runtime_seconds", "Runtime on battery that the UPS estimates.", ups.runtime_s)
        gauge("load_ratio", "Load of the UPS, 1 is the rated one.", ups.load)
    phases = Gauge("appliance_power_phase", "1 for the present phase of an outage.", ["phase"], registry=made)
    for phase in PowerPhase:
        phases.labels(phase.value).set(phase is state.phase)
    return made
