"""Why nothing is reachable: of all that failed, what comes first. Everything here is closed when it fails, so one
dead part silences those behind it; a person shall mend the part, not chase the silence."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.ops.doctor.result import Result

ORDER = (
    # Not safe: before anything else.
    "firewall-not-loaded", "firewall-open", "engine-exposed",
    # The tunnel, from its ground up; a clock that went back keeps it down.
    "clock", "wireguard-key-missing", "wireguard-interface-missing", "wireguard-wrong-peer-key",
    "tunnel-not-listening", "wireguard-no-handshake", "wireguard-stale", "firewall-closed",
    # The GPU host, from the card up.
    "driver-not-loaded", "driver-mismatch", "card-missing", "weights", "database", "gateway-down",
    "gateway-not-listening", "engine-down",
    # The edge.
    "gateway-unreachable", "certificate", "edge-not-listening", "edge-down",
)  # fmt: skip
"""Stable codes, the deepest first."""


def causes(results: Iterable[Result]) -> list[Result]:
    """The failures that keep requests from being answered, the deepest first, each code once."""
    first: dict[str, Result] = {}
    for result in results:
        if result.level == "fail" and result.cause:
            first.setdefault(result.cause, result)
    return sorted(first.values(), key=lambda result: ORDER.index(result.cause))
