"""Why nothing is reachable: of all that failed, what comes first.

Everything here is closed when it fails, so one dead part silences those behind it; a person shall mend the part,
not chase the silence.
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.doctor.finding import Finding

CAUSES = {
    # Not safe: before anything else.
    "firewall-not-loaded": "nftables did not load its table",
    "firewall-open": "the loaded rules let in what they should drop",
    "engine-exposed": "an engine listens beyond loopback",
    # The tunnel, from its ground up; a clock that went back keeps it down.
    "clock": "the clock went back",
    "wireguard-key-missing": "the private key's file is missing or empty, or was not loaded",
    "wireguard-interface-missing": "there is no tunnel interface",
    "wireguard-wrong-peer-key": "the interface has another peer key than the machine names",
    "tunnel-not-listening": "nothing listens on the tunnel's UDP port",
    "wireguard-no-handshake": "no handshake, ever: a wrong peer key on either host, or the port is not reachable",
    "wireguard-stale": "the last handshake is older than a session lives",
    "firewall-closed": "the loaded rules do not let in what the machine names",
    # The GPU host, from the card up.
    "driver-not-loaded": "the NVIDIA kernel module is not loaded",
    "driver-mismatch": "the driver hangs, or is of another version than its programs",
    "card-missing": "a card of the site does not answer",
    "weights": "model files are missing or not whole",
    "database": "keys and usage cannot be read",
    "gateway-down": "the gateway does not answer",
    "gateway-not-listening": "nothing listens where the gateway should",
    "engine-down": "an engine does not generate",
    # The edge.
    "gateway-unreachable": "no gateway answers through the tunnel",
    "certificate": "clients refuse the certificate",
    "edge-not-listening": "nothing listens where nginx should",
    "edge-down": "nginx does not answer",
}
"""Stable codes, the deepest first: what a person mends before the next."""

ORDER = tuple(CAUSES)


def causes(results: Iterable[Finding]) -> list[Finding]:
    """The failures that keep requests from being answered, the deepest first, each code once."""
    first: dict[str, Finding] = {}
    for result in results:
        if result.level == "fail" and result.cause:
            first.setdefault(result.cause, result)
    return sorted(first.values(), key=lambda result: ORDER.index(result.cause))
