"""Reads what the gateway reports about itself and its engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from appliance.system.http_request import NO_RESPONSE, send_request

READY_TIMEOUT_S = 30.0
"""Longer than the gateway's own timeout for a canary token."""


@dataclass(frozen=True, slots=True)
class GatewayReadiness:
    """The response of ``/ready`` of a gateway: the state of each engine; ``error`` if there was no response."""

    status: int
    engines: Mapping[str, str]
    error: str = ""


def read_ready(address: str, port: int) -> GatewayReadiness:
    """Request ``/ready`` of a gateway, which makes each engine generate a token."""
    host = f"[{address}]" if ":" in address else address
    try:
        # Never through a proxy: the edge reaches the gateway directly.
        response = send_request(f"http://{host}:{port}", "/ready", direct=True, timeout_s=READY_TIMEOUT_S)
        engines = response.json()["engines"]
        return GatewayReadiness(response.status, {str(name): str(state) for name, state in engines.items()})
    except (*NO_RESPONSE, ValueError, KeyError, TypeError, AttributeError) as error:
        return GatewayReadiness(0, {}, type(error).__name__)
