"""What a request costs: charged while it runs, settled in its usage row when it ends."""

from __future__ import annotations

from appliance.gateway import log
from appliance.gateway.limits import Allowance
from appliance.gateway.outcome import COUNTING
from appliance.gateway.parts import GatewayContext
from appliance.gateway.routing import Replica, Service
from appliance.gateway.sse import SseFilter, Usage
from appliance.store.models import Key, UsageRow

CHARGED = frozenset({"ok", "aborted"})
"""Outcomes that count against a key's limits even without a generated token: an embedding, a client that left."""

MOST_TOKENS = 2**40
"""Tokens that no answer has."""

BYTES_PER_TOKEN = 4
"""A prompt's tokens before the engine has counted them: English has some 4 bytes each."""


class RequestAccounting:
    """The part of an exchange that counts: for the queue, for its key's limits, for its row.

    ``line`` is whose turn it takes in the fair queue, ``size`` how many sequences it decodes at once.
    """

    __slots__ = (
        "_admitted",
        "_began",
        "_body",
        "_charged",
        "_ended",
        "_position",
        "_prompt_tokens",
        "_replica",
        "_row",
        "_service",
        "_shared",
        "line",
        "size",
        "user",
        "weight",
    )

    def __init__(self, shared: GatewayContext, owner: Key, row: UsageRow) -> None:
        self._shared = shared
        self._began = shared.clock()
        self._row = row
        self.user = owner.user
        self.line = owner.id
        self.weight = 1.0
        self.size = 1
        self._admitted: tuple[Allowance, ...] = ()
        self._body = b""
        self._charged = 0
        self._ended = False
        self._position = 0
        self._prompt_tokens = 0
        """About how many tokens its prompt has, until an engine has counted them."""
        self._replica: Replica | None = None
        self._service: Service | None = None

    def _read_by(self, service: Service, body: bytes) -> None:
        """``body`` is what a model of ``service`` will read: no more than its context (images are long)."""
        self._service, self._body = service, body
        if self._row.endpoint not in COUNTING:
            self._prompt_tokens = min(len(body) // BYTES_PER_TOKEN, service.context)

    def _charge(self, tokens: int, now: float) -> None:
        """Bring what is counted for it so far, by the queue and by its limits, to ``tokens``."""
        service = self._service
        if service is not None and tokens != self._charged:
            more, self._charged = tokens - self._charged, tokens
            service.queue.charge(self, more)
            self._shared.ledger.charge(self._admitted, more, now)

    def _count_stream(self, relay: SseFilter) -> None:
        if relay.usage is not None:
            self._count(relay.usage)
        if relay.usage is None or (not relay.final and self._row.endpoint == "/v1/messages"):
            self._estimate(relay.estimated_tokens, read=relay.began)

    def _estimate(self, completion: int, *, read: bool = True) -> None:
        """Tokens that an engine gave, and took where it ``read`` the prompt, and will not tell."""
        row = self._row
        if read:
            row.prompt_tokens = row.prompt_tokens or self._prompt_tokens
        row.completion_tokens = max(row.completion_tokens, completion)
        row.estimated = True

    def _count(self, usage: Usage) -> None:
        row = self._row
        row.prompt_tokens, row.completion_tokens, row.cached_tokens = usage.prompt, usage.completion, usage.cached
        if not 0 <= row.prompt_tokens + row.completion_tokens + row.cached_tokens <= MOST_TOKENS:
            # Limits and databases hold what an answer can have, whatever an engine reports.
            row.prompt_tokens, row.completion_tokens, row.cached_tokens = 0, 0, 0
            self._estimate(0)

    def _settle(self, now: float) -> None:
        """Charge what it took in the end, and leave a row."""
        shared, row, service = self._shared, self._row, self._service
        shared.metrics.in_flight -= 1
        row.duration_ms = (now - self._began) * 1000
        if self._replica is None and self._position:
            # It waited and never got a slot.
            row.queue_ms = row.duration_ms
        refused = row.outcome not in CHARGED and not row.completion_tokens
        tokens = 0 if refused else row.prompt_tokens + row.completion_tokens
        if self._admitted:
            shared.ledger.finish(self._admitted, tokens - self._charged, now, refused=refused)
        if service is not None and tokens and tokens != self._charged and self._replica is not None:
            # One that ended is charged what it took, one that failed what was guessed: it had its slot.
            service.queue.charge(self, tokens - self._charged)
        shared.metrics.count(row)
        shared.usage.put(row)
        log.fault(row)
