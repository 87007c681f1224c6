"""Reads what the gateway reports about itself and its engines."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass

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
    connection = http.client.HTTPConnection(address, port, timeout=READY_TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        engines = json.loads(answer.read())["engines"]
        return GatewayReadiness(answer.status, {str(name): str(word) for name, word in engines.items()})
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
        return GatewayReadiness(0, {}, type(error).__name__)
    finally:
        connection.close()
