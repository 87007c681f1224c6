"""How a request ended, in one word for its usage row and the metrics."""

from __future__ import annotations

from appliance.errors import (
    DrainingError,
    EngineFailedError,
    EngineReportedError,
    EngineTimeoutError,
    EngineUnavailableError,
    QueueFullError,
    RateLimitError,
    RequestError,
)
from appliance.gateway.sse import SseFilter

COUNTING = frozenset({"/v1/messages/count_tokens", "/tokenize", "/detokenize"})
"""Endpoints where an engine counts tokens and generates none."""

OTHER_USAGE = frozenset({"/v1/responses", "/v1/messages"}) | COUNTING
"""Endpoints that tell a stream's usage without being asked, and end without ``[DONE]``."""


def ending(relay: SseFilter, endpoint: str) -> str:
    """How a stream ended that HTTP calls complete; where there is no ``[DONE]``, the last event has usage."""
    if relay.failed:
        return "rejected" if relay.error is not None and relay.error.clients else "engine_error"
    whole = relay.final if endpoint in OTHER_USAGE else relay.done
    return "ok" if whole else "truncated"


def outcome_of(error: RequestError) -> str:
    """An error as the word that its usage row bears."""
    if isinstance(error, EngineReportedError):
        return "rejected" if error.status < 500 else "engine_error"
    for kind, outcome in _OUTCOMES:
        if isinstance(error, kind):
            return outcome
    return "rejected" if error.status < 500 else "error"


_OUTCOMES: tuple[tuple[type[RequestError], str], ...] = (
    (EngineUnavailableError, "unavailable"),
    (EngineTimeoutError, "timeout"),
    (EngineFailedError, "engine_failed"),
    (QueueFullError, "queue_full"),
    (RateLimitError, "limited"),
    (DrainingError, "draining"),
)
