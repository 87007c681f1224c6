"""Samples of the NVIDIA GPUs during a run."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.system.nvidia_smi import ClocksEventReason, GpuQuery, GpuRow, NvidiaSmiError

FIELDS = ("index", "temperature.gpu", "power.draw", "utilization.gpu", "clocks_event_reasons.active")

REASONS = {
    ClocksEventReason.SOFTWARE_POWER_CAP: "power cap (software)",
    ClocksEventReason.HARDWARE_SLOWDOWN: "hardware slowdown",
    ClocksEventReason.SOFTWARE_THERMAL_SLOWDOWN: "temperature (software)",
    ClocksEventReason.HARDWARE_THERMAL_SLOWDOWN: "temperature (hardware)",
    ClocksEventReason.HARDWARE_POWER_BRAKE: "power brake (hardware)",
}


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One GPU at one time; ``None`` for a value that the GPU does not report."""

    index: int
    temperature_c: float | None
    power_w: float | None
    utilization: float | None
    """Percent of the time in which a kernel ran."""
    reasons: int
    """Bits of :class:`ClocksEventReason`."""


def throttled(reasons: int) -> list[str]:
    """Return the names of the ``reasons`` that slow a GPU down."""
    return [name for bit, name in REASONS.items() if reasons & bit]


def sample_of(row: GpuRow) -> GpuSample:
    """Return the sample in a row of :data:`FIELDS`."""
    return GpuSample(
        int(row.text("index")),
        row.number("temperature.gpu"),
        power_w=row.number("power.draw"),
        utilization=row.number("utilization.gpu"),
        reasons=row.bits("clocks_event_reasons.active"),
    )


def sample_gpus(query: GpuQuery) -> tuple[GpuSample, ...]:
    """Return a sample of each GPU; none if `nvidia-smi` is missing or fails."""
    try:
        return tuple(sample_of(row) for row in query.rows())
    except NvidiaSmiError:
        return ()
