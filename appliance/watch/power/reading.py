"""One look at a UPS: its status words and figures, and the supply that they prove. Data and pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum

import msgspec


class Supply(StrEnum):
    """The source of the power behind the UPS."""

    MAINS = "mains"
    BATTERY = "battery"
    UNKNOWN = "unknown"
    """The status proves neither: the last known supply counts."""


class UpsReading(msgspec.Struct, frozen=True):
    """The state of a UPS. A figure that the UPS does not report is ``None``."""

    status: frozenset[str]
    """Words of ``ups.status``, such as ``OL``, ``OB``, ``LB``, ``FSD``."""
    charge: float | None = None
    """Charge of the battery, 0 to 1."""
    runtime_s: float | None = None
    """Runtime on battery in seconds, as the UPS estimates it at the present load."""
    load: float | None = None
    """Load, 1 is the rated one."""

    @property
    def supply(self) -> Supply:
        """Return the supply that the status proves.

        A self-test and a calibration (``TEST``, ``CAL``) discharge the battery while mains is present; so does
        ``OL DISCHRG``. ``OFF`` and ``BYPASS`` alone prove nothing: some models report them during a self-test.
        """
        if "OL" in self.status or self.status & {"TEST", "CAL"}:
            return Supply.MAINS
        return Supply.BATTERY if "OB" in self.status else Supply.UNKNOWN

    @property
    def low(self) -> bool:
        """Whether the UPS reports a low battery."""
        return "LB" in self.status

    @property
    def ending(self) -> bool:
        """Whether a shutdown was ordered for all machines at the UPS (``FSD``)."""
        return "FSD" in self.status


def from_variables(variables: Mapping[str, str]) -> UpsReading:
    """Return the reading in NUT's ``variables``, by their names.

    Example::

        from_variables({"ups.status": "OB DISCHRG", "battery.charge": "80"})
    """
    charge, load = _number(variables, "battery.charge"), _number(variables, "ups.load")
    runtime = _number(variables, "battery.runtime")
    return UpsReading(
        status=frozenset(variables.get("ups.status", "").split()),
        charge=None if charge is None else min(1.0, max(0.0, charge / 100)),
        # Some models report 0 or a negative number while they compute it.
        runtime_s=None if runtime is None or runtime <= 0 else runtime,
        load=None if load is None else max(0.0, load / 100),
    )


def _number(variables: Mapping[str, str], name: str) -> float | None:
    try:
        number = float(variables[name])
    except (KeyError, ValueError):
        return None
    return number if math.isfinite(number) else None
