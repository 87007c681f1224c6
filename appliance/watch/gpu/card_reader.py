"""Reads the cards with one bounded nvidia-smi child, which never blocks the reader."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from appliance.catalog.xids import Recovery, recovery_of
from appliance.system.bounded_child import NOT_STARTED, BoundedChild, ChildResult
from appliance.system.nvidia_smi import ClocksEventReason, GpuRow, parse_row, query_command

COUNTERS = {
    "sw_power_cap": "power-cap",
    "sw_thermal_slowdown": "target-temperature",
    "hw_thermal_slowdown": "heat",
    "hw_power_brake_slowdown": "power-brake",
}
"""Reasons of a lower clock: nvidia-smi's name of the counter, and ours."""

REQUIRED = ("index", "pci.bus_id", "temperature.gpu")

FIELDS = (
    *REQUIRED, "name", "temperature.gpu.tlimit", "power.draw.instant", "enforced.power.limit", "fan.speed",
    "memory.used", "memory.total", "utilization.gpu", "clocks_event_reasons.active",
    *(f"clocks_event_reasons_counters.{name}" for name in COUNTERS),
    "gpu_recovery_action", "ecc.errors.uncorrected.volatile.total", "remapped_rows.failure",
)  # fmt: skip
"""Fields of the query. `nvidia-smi -q` reads more, and a part of it halts the GPU's own processor:
https://github.com/NVIDIA/open-gpu-kernel-modules/issues/1239"""

TIMEOUT_S = 10.0
"""Seconds that one query may take. On a healthy machine it takes 0.04 s; without persistence, seconds."""

MIB = 2**20
NO_REASON = ClocksEventReason(0)

_NO_CARD = re.compile(r"No devices were found|GPU is lost|Unable to determine the device handle")
_UNKNOWN_FIELD = re.compile(r'Field "([^"]+)" is not a valid field to query')


@dataclass(frozen=True, slots=True, kw_only=True)
class CardReading:
    """One card at one moment. A figure that the card does not report is ``None``."""

    index: int
    bus: str
    name: str = ""
    temperature_c: float | None
    margin_c: float | None = None
    """Kelvin that are left until the card throttles."""
    power_w: float | None = None
    limit_w: float | None = None
    fan_ratio: float | None = None
    memory_used: float | None = None
    memory_total: float | None = None
    utilization: float | None = None
    throttle: ClocksEventReason = NO_REASON
    throttle_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds with a lower clock since the driver was loaded, by reason."""
    recovery: Recovery = Recovery.NONE
    ecc_uncorrected: int | None = None
    remap_failure: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """The result of a query: the cards that respond, or the error."""

    cards: tuple[CardReading, ...] = ()
    error: str = ""
    timed_out: bool = False


class CardReader:
    """Queries the cards again and again. At most one nvidia-smi exists, also if it hangs inside the driver."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._child = BoundedChild()
        self._timeout_s = timeout_s
        self._fields = FIELDS

    @property
    def hanging(self) -> bool:
        """Whether a query hangs inside the driver: SIGKILL does not end it."""
        return self._child.hanging

    def begin(self) -> None:
        """Start a query, unless one runs."""
        self._child.start(query_command(self._fields), timeout_s=self._timeout_s)

    def poll(self) -> Look | None:
        """Return the result of the query, once; ``None`` while it runs or hangs."""
        result = self._child.poll()
        return None if result is None else self._look(result)

    def wait(self, seconds: float) -> Look:
        """Query the cards and wait for at most ``seconds``: for commands that people run."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.begin()
            result = self._child.wait(left)
            if result is None:
                break
            before = self._fields
            look = self._look(result)
            if before == self._fields:
                return look
        return Look(error=f"nvidia-smi did not respond within {seconds:g} s")

    def close(self) -> None:
        """Kill the query, without waiting for it."""
        self._child.cancel()

    def _look(self, result: ChildResult) -> Look:
        if result.timed_out:
            return Look(error=f"nvidia-smi did not respond within {self._timeout_s:g} s", timed_out=True)
        unknown = _UNKNOWN_FIELD.search(result.output)
        if unknown is not None and unknown[1] in self._fields and unknown[1] not in REQUIRED:
            # An older driver: the next query omits the field.
            self._fields = tuple(name for name in self._fields if name != unknown[1])
            return Look(error=f"nvidia-smi has no field {unknown[1]}")
        cards = parse_cards(result.output, self._fields)
        if result.ok or cards:
            # One lost card is an error of the whole query, and the others are in its output.
            return Look(cards)
        if _NO_CARD.search(result.output):
            return Look()
        lines = result.output.strip().splitlines() or ["no output"]
        if result.code == NOT_STARTED:
            return Look(error=lines[0])
        return Look(error=f"nvidia-smi failed with exit code {result.code}: {lines[0][:200]}")


def parse_cards(text: str, fields: Sequence[str]) -> tuple[CardReading, ...]:
    """Parse the output of a query for ``fields``; a line that is not a row is skipped.

    nvidia-smi prints a message in place of a card that it cannot reach.
    """
    rows = (parse_row(line, fields) for line in text.splitlines() if line.strip())
    return tuple(_card(row) for row in rows if row is not None)


def _card(row: GpuRow) -> CardReading:
    def number(name: str, scale: float = 1.0) -> float | None:
        value = row.number(name) if name in row.cells else None
        return None if value is None else value * scale

    def yes(name: str) -> bool:
        return row.cells.get(name, "").lower() in ("yes", "1")

    seconds = {ours: number(f"clocks_event_reasons_counters.{name}", 1e-6) for name, ours in COUNTERS.items()}
    ecc = number("ecc.errors.uncorrected.volatile.total")
    active = "clocks_event_reasons.active"
    return CardReading(
        index=int(row.text("index")),
        bus=row.text("pci.bus_id"),
        name=row.cells.get("name", ""),
        temperature_c=number("temperature.gpu"),
        margin_c=number("temperature.gpu.tlimit"),
        power_w=number("power.draw.instant"),
        limit_w=number("enforced.power.limit"),
        fan_ratio=number("fan.speed", 0.01),
        memory_used=number("memory.used", MIB),
        memory_total=number("memory.total", MIB),
        utilization=number("utilization.gpu", 0.01),
        throttle=ClocksEventReason(row.bits(active)) if active in row.cells else NO_REASON,
        throttle_s={reason: value for reason, value in seconds.items() if value is not None},
        recovery=recovery_of(row.cells.get("gpu_recovery_action", "")),
        ecc_uncorrected=None if ecc is None else int(ecc),
        remap_failure=yes("remapped_rows.failure"),
    )
