"""The failure to fix first, if many checks fail.

Every part of the appliance is closed when it fails, so one failed part makes all parts behind it silent. The
operator has to fix that part first.
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.doctor.finding import Finding

CAUSES = {
    # Unsafe states, before all others.
    "firewall-not-loaded": "nftables did not load its table",
    "firewall-open": "the loaded rules accept packets that they should drop",
    "engine-exposed": "an engine listens beyond loopback",
    # The tunnel, from the bottom up; a clock that was set back keeps it down.
    "clock": "the clock was set back",
    "wireguard-key-missing": "the private key's file is missing or empty, or was not loaded",
    "wireguard-interface-missing": "the tunnel interface does not exist",
    "wireguard-wrong-peer-key": "the interface has another peer key than the machine's description",
    "tunnel-not-listening": "nothing listens on the tunnel's UDP port",
    "wireguard-no-handshake": "there was never a handshake: a key does not match, or the port is not reachable",
    "wireguard-stale": "the last handshake is older than the lifetime of a session",
    "firewall-closed": "the loaded rules drop packets that the machine's description accepts",
    # The GPU host, from the card up.
    "driver-not-loaded": "the NVIDIA kernel module is not loaded",
    "driver-mismatch": "the driver hangs, or has another version than its programs",
    "card-missing": "a card of the site does not respond",
    "weights": "model files are missing or incomplete",
    "database": "keys and usage cannot be read",
    "gateway-down": "the gateway does not respond",
    "gateway-not-listening": "no process listens on the gateway's address",
    "engine-down": "an engine does not generate",
    # The edge.
    "gateway-unreachable": "no gateway responds through the tunnel",
    "certificate": "clients reject the certificate",
    "edge-not-listening": "no process listens on the port of nginx",
    "edge-down": "nginx does not respond",
}
"""Stable codes in the order in which an operator has to fix them, the deepest first."""

ORDER = tuple(CAUSES)


def causes(results: Iterable[Finding]) -> list[Finding]:
    """Return the failures that prevent responses, the deepest first, each code once."""
    first: dict[str, Finding] = {}
    for result in results:
        if result.level == "fail" and result.cause:
            first.setdefault(result.cause, result)
    return sorted(first.values(), key=lambda result: ORDER.index(result.cause))
