"""A measurement of the runtime of a UPS: rows while it runs on its battery, and what follows from them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.watch.power.reading import Supply, UpsReading


@dataclass(frozen=True, slots=True)
class DrillRow:
    """A reading at the time ``at``, in seconds of any clock."""

    at: float
    reading: UpsReading


@dataclass(slots=True)
class Drill:
    """The rows of one measurement; it ends when mains returns or the charge is ``until`` or less."""

    until: float
    rows: list[DrillRow] = field(default_factory=list)

    def add(self, row: DrillRow) -> bool:
        """Record ``row`` if the UPS runs on its battery; return whether the measurement has ended."""
        on_battery = row.reading.supply is Supply.BATTERY
        if on_battery:
            self.rows.append(row)
        charge = row.reading.charge
        low = on_battery and (row.reading.low or (charge is not None and charge <= self.until))
        return low or bool(self.rows and row.reading.supply is Supply.MAINS)

    def line(self, row: DrillRow) -> str:
        """Return ``row`` as a line."""
        one = row.reading
        figures = [f"{row.at - self.rows[0].at:6.0f} s"]
        figures += [] if one.charge is None else [f"charge {one.charge:4.0%}"]
        figures += [] if one.load is None else [f"load {one.load:4.0%}"]
        figures += [] if one.runtime_s is None else [f"estimated runtime {one.runtime_s:.0f} s"]
        return "  ".join([*figures, " ".join(sorted(one.status))])

    def summary(self) -> str:
        """Return the measured time and, if the charge fell, the runtime of a full battery at that mean load."""
        if not self.rows:
            return "The UPS did not run on its battery; nothing was measured."
        first, last = self.rows[0], self.rows[-1]
        seconds = last.at - first.at
        loads = [row.reading.load for row in self.rows if row.reading.load is not None]
        mean = f" at a mean load of {sum(loads) / len(loads):.0%}" if loads else ""
        if first.reading.charge is None or last.reading.charge is None or seconds <= 0:
            return f"{seconds:.0f} s on battery{mean}; the UPS reports no charge, so the runtime is not known."
        fallen = first.reading.charge - last.reading.charge
        if fallen <= 0:
            return f"{seconds:.0f} s on battery{mean}; the charge did not fall: measure for longer."
        return (
            f"{seconds:.0f} s on battery{mean}; the charge fell from {first.reading.charge:.0%} to "
            f"{last.reading.charge:.0%}. A full battery lasts for some {seconds / fallen:.0f} s at that load."
        )
