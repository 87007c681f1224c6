"""Reads what the gateway reports about itself and its engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from appliance.system.http_request import NO_RESPONSE, send_request

READY_TIMEOUT_S = 30.0
"""Above the gateway's own time for a canary token."""


@dataclass(frozen=True, slots=True)
class GatewayReadiness:
    """What ``/ready`` of a gateway says, or why it does not."""

    status: int
    engines: Mapping[str, str]
    error: str = ""


def read_ready(address: str, port: int) -> GatewayReadiness:
    """Ask a gateway whether it works; it generates a token to know."""
    host = f"[{address}]" if ":" in address else address
    try:
        # Never through a proxy: the edge reaches the gateway directly.
        response = send_request(f"http://{host}:{port}", "/ready", direct=True, timeout_s=READY_TIMEOUT_S)
        engines = response.json()["engines"]
        return GatewayReadiness(response.status, {str(name): str(word) for name, word in engines.items()})
    except (*NO_RESPONSE, ValueError, KeyError, TypeError, AttributeError) as error:
        return GatewayReadiness(0, {}, type(error).__name__)
