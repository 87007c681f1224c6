"""What every exchange of a gateway shares, and where its answer goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from appliance.contract.model import Site
from appliance.errors import RequestError
from appliance.gateway.limits import Ledger
from appliance.gateway.metrics import Metrics
from appliance.gateway.routing import Replica, Router
from appliance.gateway.usage_writer import UsageWriter

if TYPE_CHECKING:
    from appliance.gateway.lifecycle import ProxiedRequest


class Responder(Protocol):
    """Where an answer goes: a client's connection, or what stands between it and several of them."""

    def answer(self, status: int, body: bytes, kind: bytes = ..., headers: bytes = ...) -> None:
        """One whole answer."""

    def answer_error(self, error: RequestError, path: str, headers: bytes = ...) -> None:
        """An error as a whole answer."""

    def start_stream(self, status: int, headers: bytes) -> None:
        """The head of a streamed answer."""

    def write(self, data: bytes) -> None:
        """A piece of it."""

    def end_stream(self, data: bytes = ...) -> None:
        """Its end, after a last piece."""

    def cut(self) -> None:
        """Close the connection without an answer."""


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
