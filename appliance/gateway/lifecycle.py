"""The life cycle of one inference request: from its API key to its usage row.

Each event is a call from the client's connection, the queue, an engine's connection or the gateway's timer,
without a task or a future. It leaves the request in one of five phases. In every case, a request gets one response
and leaves one usage row. Each event is :func:`guarded`, so an unexpected error ends this request with a 500 and
affects no other.

| phase | event | next phase |
|---|---|---|
| waiting | a slot is granted | sent |
| waiting | the request is rejected, or waits too long | ended |
| sent | the first frame of a stream | forwarding |
| sent | a failure of the engine, another replica is open | sent, to that replica |
| sent | a stream fails without a reason | explaining |
| sent | a whole response, or a failure without another replica | ended |
| explaining | the engine rejects the request and names the reason | ended |
| explaining | any other response, a failure or the deadline | sent, to another replica; ended if there is none |
| forwarding | the end of the stream, or a failure | ended |
| any but ended | disconnect of the client, drain deadline, revoked key, unexpected error | ended |

The walk of a request; the code has the same numbers:

1. :meth:`ProxiedRequest.begin` reads the body, resolves the model, checks the request and the limits, edits the
   body and submits it to the model's :class:`~appliance.gateway.routing.Service`. A rejection is the response.
2. While it waits, :meth:`ProxiedRequest.tick` enforces the queue's timeout and writes keep-alive comments.
3. :meth:`ProxiedRequest.granted` charges the estimated prompt and sends the request to the replica.
4. :meth:`ProxiedRequest.on_head` selects how to read the engine's response: an SSE stream, or a whole body.
5. :meth:`ProxiedRequest.on_data` forwards whole frames of a stream. Before the first one, nothing reaches the
   client, so an error still gets its own status, and another replica may take over.
6. :meth:`ProxiedRequest.on_end` completes a stream (a), reads a whole response (b), or reads the explanation of
   a failed stream (c).
7. :meth:`ProxiedRequest.on_failure` handles a failure of the engine: request an explanation (a), fail over (b), or
   report it to the client (c), inside the stream if that has begun.
8. Every end settles :class:`RequestAccounting`, which writes the usage row, and releases the slot, once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

from appliance.contract.model import Site
from appliance.errors import (
    AuthenticationError,
    DrainingError,
    EngineFailedError,
    EngineReportedError,
    EngineTimeoutError,
    EngineUnavailableError,
    InternalError,
    PermissionDeniedError,
    QueueFullError,
    RateLimitError,
    RequestError,
)
from appliance.gateway import media, reply
from appliance.gateway.accounts import GatewayAccounts
from appliance.gateway.body import (
    check,
    decode,
    is_controlled,
    is_split,
    sequences,
    unstreamed,
    wants_usage,
    with_cap,
    with_model,
    with_one_system,
    with_role,
    with_usage,
    without_controls,
)
from appliance.gateway.breaker import DownCause, Evidence, cause_of
from appliance.gateway.budgets import Reservation, TokenNeed
from appliance.gateway.engine_error import EngineError, read_error
from appliance.gateway.fair_queue import Ticket
from appliance.gateway.hash_ring import chat_key
from appliance.gateway.last_models import LastModels
from appliance.gateway.limits import Allowance, Ledger
from appliance.gateway.log import log_failure
from appliance.gateway.metrics import Metrics
from appliance.gateway.routing import Replica, Route, Router, Service
from appliance.gateway.sse import SseFilter, Usage, read_usage
from appliance.gateway.token_need import token_need, with_budget
from appliance.gateway.usage_writer import UsageWriter
from appliance.http1.client import UpstreamCall
from appliance.http1.types import JSON, Request, Responder
from appliance.store.models import Key, UsageRow

LOG = logging.getLogger(__name__)

COUNTING = frozenset({"/v1/messages/count_tokens", "/tokenize", "/detokenize"})
"""Endpoints on which an engine counts tokens and generates none."""

OTHER_USAGE = frozenset({"/v1/responses", "/v1/messages"}) | COUNTING
"""Endpoints whose streams always report usage and end without ``[DONE]``."""

TEMPLATED = frozenset({"/v1/chat/completions", "/tokenize"})
"""Endpoints whose ``messages`` an engine renders with the model's own template."""

ANTHROPIC = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
"""Endpoints whose clients read ``request-id``, too."""

UNEXPLAINED = frozenset({"/v1/messages", "/v1/responses"})
"""Endpoints on which vLLM 0.32 aborts a stream for a client's mistake and names no status."""

EXPLAIN_S = 2.0
"""Seconds within which an engine explains a failed stream; it validates a request before anything else."""

ERRORS = (b'{"error":', b'{"type":"error"')
"""First bytes of a whole response that is an error with status 200."""

KEEP_ALIVE = b": waiting for an engine\n\n"
"""A comment in an SSE stream: it prevents timeouts of proxies and clients, and no client displays it."""

REFUSED_KEY = "the server of this model does not accept the key of the gateway; check engines.<name>.key_file"
"""The message of an engine's 401."""

CHARGED = frozenset({"ok", "aborted"})
"""Outcomes that count against a key's limits even without a generated token: embeddings, disconnects."""

MOST_TOKENS = 2**40
"""More tokens than any response has."""

BYTES_PER_TOKEN = 4
"""Estimates the tokens of a prompt before the engine counts them: English has about 4 bytes per token."""


class RequestPhase(Enum):
    """The phase of a request; the module's docstring has the transitions."""

    WAITING = 1
    """It has no slot: the gateway reads it, or it is in the queue."""
    SENT = 2
    """A replica has it, and the client has received nothing of the replica's response."""
    EXPLAINING = 3
    """Its stream failed; the engine processes it again as a whole, to name the reason."""
    FORWARDING = 4
    """The client has received frames of the engine's stream."""
    ENDED = 5
    """Its usage is settled and its slot released."""


# Bound once: an attribute of an Enum costs ten times a global, and each piece of a stream compares two.
WAITING, SENT, EXPLAINING, FORWARDING, ENDED = RequestPhase


class Running(Protocol):
    """A request in progress, as the gateway's timer, drain and key poll use it."""

    key_id: str

    def tick(self, now: float) -> None:
        """Check the request's deadlines at ``now`` (seconds of the context's clock)."""

    def stop(self) -> None:
        """End the request because the drain's deadline has passed."""

    def revoke(self) -> None:
        """End the request because its key was revoked."""


@dataclass(frozen=True, slots=True)
class GatewayContext:
    """The parts of one gateway that all its requests share."""

    site: Site
    router: Router
    ledger: Ledger
    accounts: GatewayAccounts
    usage: UsageWriter
    metrics: Metrics
    running: set[Running]
    clock: Callable[[], float]
    """A monotonic clock in seconds; the loop's own has the same zero and counts whole milliseconds."""
    suspect: Callable[[Replica], None]
    """Requests a canary token from a replica on which a request failed."""
    last_models: LastModels


class RequestAccounting:
    """The usage of one request: charged to the queue and the limits while it runs, settled in its usage row.

    The queue identifies a request by its ticket, so the methods that charge take it.
    """

    __slots__ = (
        "_account",
        "_allowances",
        "_context",
        "_reservation",
        "_service",
        "began",
        "charged",
        "had_slot",
        "position",
        "prompt",
        "row",
    )

    def __init__(self, context: GatewayContext, row: UsageRow) -> None:
        self._context = context
        self._account = row.user.partition("/")[0]
        """The user whose budget counts, without an end user."""
        self._allowances: tuple[Allowance, ...] = ()
        self._reservation: Reservation | None = None
        self._service: Service | None = None
        self.row = row
        self.began = context.clock()
        """Time of the context's clock at which the request began."""
        self.charged = 0
        """Tokens charged so far."""
        self.had_slot = False
        self.position = 0
        """Requests ahead of it in the queue when it began to wait, itself included; 0 if it started at once."""
        self.prompt = 0
        """Estimated tokens of the prompt, until an engine has counted them."""

    def admit(self, key: Key) -> None:
        """Count the request against the limits of ``key``; raises :class:`RateLimitError`."""
        self._allowances = self._context.ledger.admit(key, self.began)

    def expect(self, service: Service, body: bytes) -> None:
        """Estimate the prompt from the ``body`` that a model of ``service`` will process.

        The estimate is at most the model's context: images have many bytes.
        """
        self._service = service
        if self.row.endpoint not in COUNTING:
            self.prompt = min(len(body) // BYTES_PER_TOKEN, service.context)

    def reserve(self, service: Service, body: bytes, size: int) -> Reservation | None:
        """Reserve the tokens that the request may take in the budget of its user; ``None`` without a budget.

        ``size`` is the number of its sequences. Raises :class:`RateLimitError` if the budget does not hold it.
        """
        budgets, row = self._context.accounts.budgets, self.row
        if row.endpoint in COUNTING or not budgets.has_budget(self._account, row.started_at):
            return None
        need = token_need(
            decode(body),
            body,
            path=row.endpoint,
            task=service.task,
            context=service.context,
            sequences=size,
        )
        return self.reserve_tokens(need)

    def reserve_tokens(self, need: TokenNeed) -> Reservation | None:
        """Reserve the tokens of ``need`` in the budget of the user; ``None`` without a budget.

        Raises :class:`RateLimitError` if the budget does not hold it.
        """
        self._reservation = self._context.accounts.budgets.reserve(self._account, need, self.row.started_at)
        return self._reservation

    def start(self, ticket: Ticket) -> None:
        """Record the end of the wait and charge the estimated prompt."""
        now = self._context.clock()
        self.had_slot = True
        self.row.queue_ms = (now - self.began) * 1000
        self.charge(ticket, self.prompt, now)

    def charge(self, ticket: Ticket, tokens: int, now: float) -> None:
        """Charge the difference between ``tokens`` and the tokens charged so far, to the queue and the limits."""
        service = self._service
        if service is not None and tokens != self.charged:
            more, self.charged = tokens - self.charged, tokens
            service.queue.charge(ticket, more)
            self._context.ledger.charge(self._allowances, more, now)

    def waited_ms(self) -> float:
        """Return the milliseconds that the request waited for a slot, so far or in all."""
        return self.row.queue_ms if self.had_slot else (self._context.clock() - self.began) * 1000

    def count(self, usage: Usage) -> None:
        """Record the ``usage`` that an engine reported; an impossible one is replaced by the estimate."""
        row = self.row
        row.prompt_tokens, row.completion_tokens, row.cached_tokens = usage.prompt, usage.completion, usage.cached
        if not 0 <= row.prompt_tokens + row.completion_tokens + row.cached_tokens <= MOST_TOKENS:
            # Limits and databases hold the tokens of any real response; an engine may report more.
            row.prompt_tokens, row.completion_tokens, row.cached_tokens = 0, 0, 0
            self.estimate(0)

    def count_stream(self, stream: SseFilter) -> None:
        """Record the usage of ``stream`` as far as it was received, and estimate the rest."""
        if stream.usage is not None:
            self.count(stream.usage)
        if stream.usage is None or (not stream.final and self.row.endpoint == "/v1/messages"):
            self.estimate(stream.estimated_tokens, processed=stream.began)

    def estimate(self, completion: int, *, processed: bool = True) -> None:
        """Record tokens for which no usage will arrive: ``completion``, and the prompt if it was ``processed``."""
        row = self.row
        if processed:
            row.prompt_tokens = row.prompt_tokens or self.prompt
        row.completion_tokens = max(row.completion_tokens, completion)
        row.estimated = True

    def settle(self, ticket: Ticket, now: float) -> None:
        """Charge the final usage and write the usage row."""
        context, row, service = self._context, self.row, self._service
        context.metrics.in_flight -= 1
        row.duration_ms = (now - self.began) * 1000
        if self.position and not self.had_slot:
            row.queue_ms = row.duration_ms
        refused = row.outcome not in CHARGED and not row.completion_tokens
        tokens = 0 if refused else row.prompt_tokens + row.completion_tokens
        if self._allowances:
            context.ledger.finish(self._allowances, tokens - self.charged, now, refused=refused)
        if service is not None and tokens and tokens != self.charged and self.had_slot:
            # Actual usage; a failed request keeps its estimate, since it occupied a slot.
            service.queue.charge(ticket, tokens - self.charged)
        context.metrics.count(row)
        context.usage.put(row)
        if row.outcome == "ok" and self._service is not None:
            context.last_models.used(self._account, self._service.model, context.clock())
        context.accounts.budgets.settle(
            self._account,
            row.prompt_tokens + row.completion_tokens,
            row.started_at,
            reservation=self._reservation,
            number=context.usage.accepted,
        )
        log_failure(row)


def stream_outcome(stream: SseFilter, endpoint: str) -> str:
    """Return the outcome of a stream that HTTP reports as complete.

    On endpoints without ``[DONE]``, the event with the final usage is the last one.
    """
    if stream.failed:
        return "rejected" if stream.error is not None and stream.error.clients else "engine_error"
    complete = stream.final if endpoint in OTHER_USAGE else stream.done
    return "ok" if complete else "truncated"


def error_outcome(error: RequestError) -> str:
    """Return the outcome of a request that ended with ``error``, as in its usage row and the metrics."""
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


def whole_error(body: bytes, status: int) -> tuple[bytes, int, EngineError | None]:
    """Return a whole response that is an error as its client gets it: body, status, and the error in it."""
    if status == 401:
        # A server of kind http rejects the gateway's key, not the client's.
        return b"", 502, EngineError(REFUSED_KEY)
    error = read_error(body)
    if status < 400 and error is not None:
        # An engine that reports an error with status 200 must not look like a success.
        status = error.status or 502
    return body, status, error


class GuardedRequest(Protocol):
    """A request whose events are :func:`guarded`."""

    def crashed(self, error: Exception) -> None:
        """End the request with a 500 because of an unexpected ``error`` of the gateway."""


P = ParamSpec("P")
G = TypeVar("G", bound=GuardedRequest)


def guarded(event: Callable[Concatenate[G, P], None]) -> Callable[Concatenate[G, P], None]:
    """Turn any error inside ``event`` into a 500 of its request: one response, one log entry, everything released.

    Events take positional arguments only: keyword arguments would double the cost of this boundary.
    """

    @wraps(event)
    def run(request: G, /, *args: object) -> None:
        try:
            event(request, *args)  # type: ignore[call-arg, arg-type]
        except Exception as error:  # noqa: BLE001 - the boundary of one request
            request.crashed(error)

    return cast("Callable[Concatenate[G, P], None]", run)


class ProxiedRequest:
    """One request on its way from a client to an engine and back.

    Args:
        context: The parts of the gateway.
        owner: The key of the request, for the end user that it names.
        request: The request with its whole body.
        client: Receives the response.
        background_weight: Factor of the weight of background work; ``None`` for all other requests.
        acting: Whether the assistant sent it for its user.
    """

    __slots__ = (
        "_accounting",
        "_acting",
        "_answered",
        "_body",
        "_cap",
        "_client",
        "_content_type",
        "_context",
        "_explain_until",
        "_failure",
        "_phase",
        "_pieces",
        "_replica",
        "_request",
        "_row",
        "_service",
        "_slow",
        "_status",
        "_stream",
        "_streaming",
        "_strip",
        "_tried",
        "_upstream",
        "_wrote_at",
        "chat_key",
        "key_id",
        "size",
        "user",
        "weight",
    )

    def __init__(
        self,
        context: GatewayContext,
        owner: Key,
        request: Request,
        client: Responder,
        *,
        background_weight: float | None = None,
        acting: bool = False,
    ) -> None:
        self._acting = acting
        # The ticket, as the queue and the service use it.
        self.user = owner.user
        self.key_id = owner.id
        self.weight = 1.0
        if background_weight is not None:
            # A flow of its own: background work must not delay its own user's chats. No user's name has a space.
            self.user += " (background)"
            self.weight = background_weight
        self.size = 1
        self.chat_key: bytes | None = None
        # The request.
        self._context = context
        self._request = request
        self._row = UsageRow(
            started_at=time.time(), request_id=request.id, user=owner.user, key_id=owner.id, endpoint=request.path
        )
        self._accounting = RequestAccounting(context, self._row)
        self._phase = WAITING
        self._service: Service | None = None
        self._body = b""
        """The body that the engine receives."""
        self._cap = 0
        """Tokens to which the request's own limit was reduced."""
        self._strip = False
        """Whether the usage frame of the stream is removed, because the client did not request it."""
        # The client's side.
        self._client = client
        self._answered = False
        """Whether the client has a whole response, or disconnected."""
        self._streaming = False
        """Whether the head of a streamed response was written; keep-alive comments need it before an engine's."""
        self._slow = False
        self._wrote_at = self._accounting.began
        # The engine's side, reset for every replica.
        self._replica: Replica | None = None
        self._upstream: UpstreamCall | None = None
        self._tried: set[str] | None = None
        self._status = 0
        self._content_type = b""
        self._stream: SseFilter | None = None
        self._pieces: list[bytes] = []
        self._failure: RequestError
        """The failure of the stream that the engine explains; set in phase ``EXPLAINING``."""
        self._explain_until = 0.0

    @property
    def repeatable(self) -> bool:
        """Whether the complete response would be the same again: a success, or the client's own mistake."""
        return self._row.outcome in ("ok", "rejected") and self._row.status not in (408, 429)

    # 1. The application hands over a request.

    @guarded
    def begin(self, owner: Key) -> None:
        """Read and check the request, then submit it; a rejection is its response."""
        context, row, accounting = self._context, self._row, self._accounting
        context.running.add(self)
        context.metrics.in_flight += 1
        try:
            request = self._request
            path, body = request.path, request.body
            fields = decode(body)
            route = self._routed(owner, fields.model, stream=bool(fields.stream))
            service, role = route.service, route.role
            gateway = context.site.gateway
            if is_controlled(fields):
                body = without_controls(body)
            if service.task == "generate" and path in TEMPLATED and is_split(fields):
                body = with_one_system(body)
            over = check(fields, path, context=service.context, max_n=gateway.max_n, capped=service.cap_tokens)
            media.check(body, gateway.media_domains)
            accounting.admit(owner)
            self.weight *= context.ledger.weight(owner)
            self.size = sequences(fields, path)
            if over:
                body, self._cap = with_cap(body, fields, service.context), service.context
            if row.stream and path not in OTHER_USAGE and not wants_usage(fields):
                self._strip = True
                body = with_usage(body, fields)
            if role is not None:
                row.role = row.name
                body = with_role(body, role, path)
            reservation = accounting.reserve(service, body, self.size)
            if reservation is not None and reservation.cap is not None:
                body, self._cap = with_budget(body, decode(body), path, reservation.cap), reservation.cap
            self._service, self._body = service, body
            accounting.expect(service, body)
            request.body = b""
            if len(service.replicas) > 1:
                self.chat_key = chat_key(fields, request.headers, row.user)
            accounting.position = service.submit(self, accounting.began)
        except RequestError as error:
            self._fail(error)

    def _routed(self, owner: Key, name: str, *, stream: bool) -> Route:
        """Return the route to the model or role ``name``, and record both.

        Raises :class:`RequestError` if there is none, or if ``owner`` may not use it.
        """
        row, context = self._row, self._context
        route = context.router.find(name, row.endpoint)
        row.name, row.model, row.stream = name, route.service.model, stream
        if not context.accounts.allows(owner, name) and not (self._acting and serves_memory(context.site, name)):
            message = f"This key may not use `{name[:80]}`; GET /v1/models lists the models that it may use"
            raise PermissionDeniedError(message, code="model_not_allowed", param="model")
        return route

    # 2. The gateway's timer.

    @guarded
    def tick(self, now: float) -> None:
        """Enforce the deadlines, write keep-alive comments, and charge the tokens received so far."""
        service, phase = self._service, self._phase
        if phase is ENDED or service is None:
            return
        queue = self._context.site.gateway.queue
        replica, stream = self._replica, self._stream
        if replica is None:
            overdue = service.overdue(self, queue.max_wait_s, now)
            if overdue is not None:
                service.leave(self)
                self._fail(overdue)
                return
        elif phase is EXPLAINING:
            if now > self._explain_until:
                self._cancel_upstream()
                self._handle_failure(self._unexplained())
                return
        elif phase is FORWARDING and stream is not None:
            tokens = self._accounting.prompt + stream.frames
            if tokens > self._accounting.charged:
                # Tokens, not a mere head: an engine whose core hangs still sends a head.
                replica.last_token = now
            self._accounting.charge(self, tokens, now)
            return
        elif not replica.breaker.up and not self._pieces:
            # The breaker opened after this request was sent, and no byte has arrived yet: fail over.
            upstream = self._upstream
            if self._fail_over() and upstream is not None:
                upstream.cancel()
        if self._row.stream and self._phase is not FORWARDING and now - self._wrote_at > queue.keepalive_s:
            self._wrote_at = now
            if not self._streaming:
                self._start_stream(200)
            self._client.write(KEEP_ALIVE)

    # 3. The queue.

    @guarded
    def granted(self, replica: Replica) -> None:
        """Send the request to ``replica``, which has a slot for it."""
        self._replica = replica
        self._phase = SENT
        self._accounting.start(self)
        self._post(replica, self._body)

    @guarded
    def refused(self, error: RequestError) -> None:
        """End the request with ``error``: it will get no slot."""
        self._fail(error)

    # The engine's connection. It reports errors inside on_head, on_data and on_end to `crashed`.

    # 4. The head of the engine's response.

    def on_head(self, status: int, content_type: bytes) -> None:
        """Prepare to forward an SSE stream, or to collect any other response."""
        self._status = status
        self._content_type = content_type
        if content_type.startswith(b"text/event-stream") and self._phase is not EXPLAINING:
            # The client's head follows with the first frame: until then another replica may still take over.
            foreign = self._replica is not None and self._replica.foreign
            self._stream = SseFilter(strip_usage=self._strip, endpoint=self._row.endpoint, foreign=foreign)
            self._row.status = status

    # 5. Its data.

    def on_data(self, data: bytes) -> None:
        """Forward the whole frames of a stream; collect the parts of any other response."""
        stream, phase = self._stream, self._phase
        if stream is None or phase is EXPLAINING:
            self._pieces.append(data)
            return
        try:
            ready = stream.feed(data)
        except EngineFailedError as error:
            self._cancel_upstream()
            self.on_failure(error)
            return
        if stream.failed and phase is not FORWARDING:
            self._failed_early(stream.error)
            return
        row = self._row
        if row.ttft_ms is None and stream.began:
            row.ttft_ms = (self._context.clock() - self._accounting.began) * 1000
        if ready:
            if phase is not FORWARDING:
                self._phase = FORWARDING
                if not self._streaming:
                    self._start_stream(self._status)
            self._client.write(ready)

    # 6. Its end.

    def on_end(self) -> None:
        """Complete the request: the engine's response is complete."""
        self._upstream = None
        stream = self._stream
        if self._phase is EXPLAINING:
            self._explained(self._unexplained())
        elif stream is not None:
            row = self._row
            row.outcome = stream_outcome(stream, row.endpoint)
            self._accounting.count_stream(stream)
            self._report_outcome(row.outcome)
            self._settle()
            if not self._streaming:
                self._start_stream(self._status)
            self._client.end_stream(stream.finish())
            self._answered = True
        else:
            self._end_whole()

    # 7. Its failure.

    @guarded
    def on_failure(self, failure: RequestError) -> None:
        """Fail over before the first byte; afterwards report the error to the client."""
        self._upstream = None
        if self._phase is ENDED:
            return
        if self._phase is EXPLAINING:
            failure = self._unexplained()
        elif isinstance(failure, EngineFailedError) and self._explain(failure):
            return
        self._handle_failure(failure)

    # The client's connection.

    @guarded
    def client_disconnected(self) -> None:
        """End the request: the client disconnected. Leave the queue or cancel the upstream request."""
        if self._phase is ENDED:
            return
        self._give_up()
        row, stream, accounting = self._row, self._stream, self._accounting
        row.outcome = "aborted"
        row.status = row.status or 499
        if stream is not None:
            accounting.count_stream(stream)
            if stream_outcome(stream, row.endpoint) == "ok":
                # The client disconnected after the last event; OpenAI's own client does so.
                row.outcome = "ok"
        if self._replica is not None and not row.prompt_tokens:
            # The engine has processed the prompt even if the client left before the first token.
            accounting.estimate(0)
        self._answered = True
        self._settle()

    @guarded
    def client_slow(self) -> None:
        """Stop reading from the engine: the client is a slow reader."""
        self._slow = True
        if self._upstream is not None:
            self._upstream.pause()

    @guarded
    def client_ready(self) -> None:
        """Read from the engine again: the client has read what was buffered."""
        self._slow = False
        if self._upstream is not None:
            self._upstream.resume()

    # The gateway.

    @guarded
    def stop(self) -> None:
        """End the request with an error, inside its stream if that has begun: the drain's deadline has passed."""
        if self._phase is ENDED:
            return
        error: RequestError = DrainingError("The gateway is stopping; try again shortly", retry_after=5)
        if self._replica is not None:
            # Not a 503: an edge repeats that on another host, and a request that an engine has begun must not be.
            error = EngineFailedError(str(error), code=error.code)
        self._give_up()
        self._fail(error, "stopped")

    @guarded
    def revoke(self) -> None:
        """End the request in any phase: its key was revoked."""
        if self._phase is not ENDED:
            self._give_up()
            self._fail(AuthenticationError("This API key was revoked while your request ran"), "revoked")

    def crashed(self, error: Exception) -> None:
        """End the request with a 500 because of an unexpected ``error`` of the gateway."""
        self._log_crash(error)
        if self._answered:
            return
        row = self._row
        internal = InternalError(
            f"The gateway failed on this request; its log has the reason under {row.request_id}"
        )
        try:
            if self._phase is not ENDED:
                self._give_up()
                self._fail(internal, "error")
            elif self._streaming:
                self._end_with(internal)
            else:
                reply.respond_error(self._client, internal, row.endpoint)
            self._answered = True
        except Exception as second:  # noqa: BLE001 - no response can be written: the connection closes
            self._log_crash(second)
            self._settle()
            self._client.abort()

    # Inside.

    def _log_crash(self, error: Exception) -> None:
        row = self._row
        fields = {"request_id": row.request_id, "endpoint": row.endpoint, "engine": row.engine}
        LOG.error("the gateway failed on a request", exc_info=error, extra={"fields": fields})
        self._context.metrics.internal_errors += 1

    def _post(self, replica: Replica, body: bytes) -> None:
        """Send ``body`` to ``replica``."""
        row = self._row
        row.engine = replica.name
        if replica.served_name:
            body = with_model(body, replica.served_name)
        self._upstream = replica.pool.post(
            self, row.endpoint.encode(), body, b"x-request-id: " + row.request_id.encode()
        )
        if self._slow:
            self._upstream.pause()

    def _handle_failure(self, failure: RequestError) -> None:
        """Count a failure against the replica, then fail over (7b) or report it (7c)."""
        certain = isinstance(failure, EngineUnavailableError)
        cause = cause_of(failure) if certain else "failed-requests"
        self._count_failure(str(failure), cause=cause, certain=certain)
        if self._phase is FORWARDING or not self._fail_over():
            self._fail(failure)

    def _failed_early(self, error: EngineError | None) -> None:
        """Handle an error event before the first byte: respond with its status, as if it were a whole response."""
        self._cancel_upstream()
        message = error.message if error is not None else "the engine gave no reason; see its log"
        status = (error.status if error is not None else None) or 502
        failure = EngineReportedError(message, status=status, param=error.param if error is not None else None)
        if status < 500:
            self._fail(failure)
        elif (error is not None and error.status is not None) or not self._explain(failure):
            self._handle_failure(failure)

    def _explain(self, failure: RequestError) -> bool:
        """Send the request again as a whole (7a), to learn why its stream failed before its first byte.

        vLLM 0.32 validates the parameters of these endpoints after a stream has begun, and then aborts it or
        reports an error without a status. A whole request gets a 400 that names the reason.

        Returns:
            Whether the request was sent.
        """
        replica, row = self._replica, self._row
        if replica is None or not replica.open or self._phase is not SENT:
            return False
        if not row.stream or row.endpoint not in UNEXPLAINED:
            return False
        self._phase = EXPLAINING
        self._failure = failure
        self._explain_until = self._context.clock() + EXPLAIN_S
        self._pieces = []
        self._post(replica, unstreamed(self._body))
        return True

    def _unexplained(self) -> RequestError:
        """Leave ``EXPLAINING`` for ``SENT``; return the failure of the stream."""
        failure = self._failure
        # Its traceback may refer to this request, which only the garbage collector would free.
        del self._failure
        self._phase = SENT
        return failure

    def _explained(self, failure: RequestError) -> None:
        """Read the explanation (6c): a 4xx is the client's mistake, else the stream's failure is the engine's."""
        error = read_error(b"".join(self._pieces)) if 400 <= self._status < 500 else None
        self._pieces = []
        if error is not None:
            self._fail(EngineReportedError(error.message, status=self._status, param=error.param))
        else:
            self._handle_failure(failure)

    def _fail_over(self) -> bool:
        """Send the request to a replica that was not tried; return false if there is none."""
        replica, service = self._replica, self._service
        if replica is None or service is None:
            return False
        self._tried = self._tried or set()
        self._tried.add(replica.name)
        other = service.move(self, replica, self._tried)
        if other is None:
            return False
        self._replica = other
        self._status = 0
        self._pieces = []
        self._stream = None
        self._post(other, self._body)
        return True

    def _end_whole(self) -> None:
        """Forward a whole response (6b): read its usage or its error, fail over on a 5xx."""
        row, status = self._row, self._status
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        error: EngineError | None = None
        if status >= 400 or body.lstrip()[:15].startswith(ERRORS):
            body, status, error = whole_error(body, status)
        if status >= 500:
            row.outcome = "engine_error"
        elif status >= 400:
            row.outcome = "rejected"
        else:
            row.outcome = "ok"
            usage = read_usage(body)
            if usage is not None:
                self._accounting.count(usage)
            elif row.endpoint not in COUNTING:
                generates = self._service is not None and self._service.task == "generate"
                self._accounting.estimate(len(body) // BYTES_PER_TOKEN if generates else 0)
        self._report_outcome(row.outcome)
        if status >= 500 and self._fail_over():
            row.outcome = ""
            return
        row.status = status
        client, kind = self._client, self._content_type or JSON
        if status >= 400:
            body, kind = reply.engine_body(error, status, body, row.endpoint), JSON
        headers = self._id_headers()
        self._settle()
        if not self._streaming:
            client.respond(status, body, kind, headers)
        elif error is not None and row.endpoint in UNEXPLAINED:
            # Keep-alive comments were sent already, and a status with them.
            self._end_with(EngineReportedError(error.message, status=status, param=error.param))
        else:
            client.end_stream(b"data: " + body.replace(b"\n", b" ") + b"\n\n")
        self._answered = True

    def _start_stream(self, status: int) -> None:
        headers = self._id_headers()
        self._streaming = True
        self._client.start_stream(status, headers)

    def _id_headers(self) -> bytes:
        """Return the header lines that name the request, its reduced limit and its wait."""
        row, accounting = self._row, self._accounting
        if row.endpoint in ANTHROPIC:
            headers = reply.id_headers(row.request_id, row.endpoint)
        else:
            headers = b"x-request-id: %s\r\n" % row.request_id.encode()
        if self._cap:
            headers += b"x-max-tokens-capped: %d\r\n" % self._cap
        if not accounting.position:
            return headers
        return b"%sx-queue-position: %d\r\nx-queue-wait-ms: %d\r\n" % (
            headers,
            accounting.position,
            accounting.waited_ms(),
        )

    def _give_up(self) -> None:
        """Leave the queue, or cancel the upstream request."""
        if self._replica is None and self._service is not None:
            self._service.leave(self)
        self._cancel_upstream()

    def _cancel_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.cancel()

    def _fail(self, error: RequestError, outcome: str | None = None) -> None:
        """Respond with ``error``, inside the stream if that has begun; ``outcome`` replaces the error's own."""
        row = self._row
        row.outcome = outcome or error_outcome(error)
        stream = self._stream
        if stream is not None:
            self._accounting.count_stream(stream)
        if not self._streaming:
            row.status = error.status
        headers = self._id_headers()
        self._settle()
        if self._streaming:
            self._end_with(error)
        else:
            reply.respond_error(self._client, error, row.endpoint, headers)
        self._answered = True

    def _end_with(self, error: RequestError) -> None:
        """End the stream with ``error`` as its last event."""
        stream = self._stream
        opening = bytes(stream.opening) if stream is not None and stream.opening is not None else None
        sequence = stream.frames if stream is not None else 0
        self._client.end_stream(reply.error_event(error, self._row.endpoint, opening=opening, sequence=sequence))

    def _report_outcome(self, outcome: str) -> None:
        """Report ``outcome`` to the replica's breaker; a client's mistake proves nothing about an engine."""
        if outcome == "rejected":
            return
        if outcome != "ok":
            self._count_failure(f"a response ended as {outcome}")
        elif self._replica is not None:
            self._replica.breaker.succeeded()
            self._replica.last_token = self._context.clock()

    def _count_failure(self, why: str, *, cause: DownCause = "failed-requests", certain: bool = False) -> None:
        """Count a failure against the replica; unless ``certain``, this request alone may be the cause."""
        replica, service = self._replica, self._service
        if replica is None or service is None:
            return
        evidence = None if certain else Evidence(self.key_id, hash(self._body))
        if replica.breaker.failed(why, self._context.clock(), cause=cause, evidence=evidence):
            service.went_down()
        else:
            self._context.suspect(replica)

    # 8. The end of the request.

    def _settle(self) -> None:
        """Settle the usage and release the slot, once."""
        if self._phase is ENDED:
            return
        self._phase = ENDED
        self._context.running.discard(self)
        now = self._context.clock()
        try:
            self._accounting.settle(self, now)
        except Exception as error:  # noqa: BLE001 - the response is written and the slot released all the same
            self._log_crash(error)
        if self._service is not None and self._replica is not None:
            self._service.release(self._replica, self, now)


def serves_memory(site: Site, name: str) -> bool:
    """Return whether the model ``name`` makes the assistant's memory work.

    The assistant uses it for the files and chats of every user, also of one whose plan or key does not list it.
    """
    return site.assistant is not None and name in (site.assistant.embedder, site.assistant.reranker)
