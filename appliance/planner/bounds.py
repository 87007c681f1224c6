"""The check of a number against its range."""

from __future__ import annotations

from appliance.errors import UsageError


def check_range(name: str, value: float, *, low: float, high: float) -> None:
    """Raise :class:`UsageError` with the nearest valid value if ``value`` is not between ``low`` and ``high``."""
    if not low <= value <= high:  # also catches NaN
        nearest = low if not value > low else high
        raise UsageError(f"{name} = {value:g} is out of range; nearest valid value: {nearest:g}")
