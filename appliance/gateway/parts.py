"""What every exchange of a gateway shares, and where its answer goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.contract.model import Site
from appliance.gateway.limits import Ledger
from appliance.gateway.metrics import Metrics
from appliance.gateway.routing import Replica, Router
from appliance.gateway.usage_writer import UsageWriter

if TYPE_CHECKING:
    from appliance.gateway.lifecycle import ProxiedRequest


@dataclass(frozen=True, slots=True)
class GatewayContext:
    """What every exchange of one gateway shares."""

    site: Site
    router: Router
    ledger: Ledger
    usage: UsageWriter
    metrics: Metrics
    running: set[ProxiedRequest]
    clock: Callable[[], float]
    """A monotonic clock in seconds; the loop's own has the same zero and counts whole milliseconds."""
    suspect: Callable[[Replica], None]
    """Asks a replica on which a request failed for a canary token."""
