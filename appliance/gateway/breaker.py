"""A circuit breaker for one replica: it opens after failures that no single client explains. Pure.

While it is open, the replica gets no requests; a success or a generated token closes it.


| state | event | next state |
|---|---|---|
| up | a success, or a canary token | up, the count of failures is 0 |
| up | a failure | up; the gateway requests a canary token at once |
| up | ``threshold`` different failed requests, of at least two callers | down |
| up | a refused connection, or a canary without a token | down |
| down | a canary without a token | down, the next canary later |
| down | a success, or a canary token | up |

A request that the engine cannot process fails each time, and its client may send it for ever. It proves nothing
about other requests, so failures of one caller never take a replica down: the canary decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from appliance.errors import EngineTimeoutError, EngineUnavailableError, RequestError

DownCause = Literal["unreachable", "timeout", "no-token", "failed-requests", "gateway-error"]
"""The kinds of failure that take a replica down, for the metrics.

It refuses connections, its canary timed out or brought no token, or requests of several callers failed. The last
one is a canary on which the gateway itself failed."""

CAUSES: tuple[DownCause, ...] = get_args(DownCause)

FIRST_PROBE_S = 1.0
LAST_PROBE_S = 15.0
"""Seconds between canaries while the replica is down: doubled from the first to the last."""


class Evidence(NamedTuple):
    """The request that failed: its caller (an API key's id), and a digest of its body."""

    caller: str
    request: int


@dataclass(slots=True)
class Breaker:
    """The state of one replica. Mistakes of clients (4xx, disconnects) are not reported to it."""

    threshold: int
    up: bool = True
    why: str = ""
    cause: DownCause | None = None
    """The kind of the failure ``why``; ``None`` while it is up."""
    probe_at: float = 0.0
    _failed: dict[str, set[int]] = field(default_factory=dict)
    """Different requests that failed since the last success, by caller."""
    _wait: float = FIRST_PROBE_S

    @property
    def failures(self) -> int:
        """Different requests that failed since the last success; at most ``threshold`` of one caller."""
        return sum(map(len, self._failed.values()))

    def succeeded(self) -> None:
        """Count a success: a response, or a canary token."""
        if self._failed:
            self._failed.clear()
        self._wait = FIRST_PROBE_S
        if not self.up:
            self.up = True
            self.why = ""
            self.cause = None

    def failed(
        self, why: str, now: float, *, cause: DownCause = "failed-requests", evidence: Evidence | None = None
    ) -> bool:
        """Count a failure; return whether it took the replica down.

        Args:
            why: The cause, for the status.
            now: Time in seconds.
            cause: The kind of the failure, for the metrics.
            evidence: The failed request; without it, this failure alone takes the replica down.
        """
        if not self.up:
            self.why, self.cause = why, cause
            return False
        if evidence is not None:
            requests = self._failed.setdefault(evidence.caller, set())
            if len(requests) < self.threshold:
                requests.add(evidence.request)
            if len(self._failed) < 2 or self.failures < self.threshold:
                return False
        self.up = False
        self.why, self.cause = why, cause
        self._failed.clear()
        self._wait = FIRST_PROBE_S
        self.probe_at = now + self._wait
        return True

    def probe_failed(self, why: str, now: float, *, cause: DownCause = "no-token") -> None:
        """Count a canary without a token while the replica is down: the next canary follows later."""
        self.why, self.cause = why, cause
        self._wait = min(self._wait * 2, LAST_PROBE_S)
        self.probe_at = now + self._wait


def cause_of(failure: RequestError) -> DownCause:
    """Return the kind of ``failure``, which a connection to the engine reported."""
    if isinstance(failure, EngineUnavailableError):
        return "unreachable"
    return "timeout" if isinstance(failure, EngineTimeoutError) else "no-token"
