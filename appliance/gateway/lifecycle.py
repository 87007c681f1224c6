"""The way of one inference request, as events: begun, granted a slot, answered by an engine, ended.

No task and no future: each event is a call from the client's connection, the queue or the engine's connection, and
each leaves the exchange in a state that the next one may find. Whatever happens, one usage row and one answer: each
event is :func:`guarded`, so an error of ours becomes a 500 of this request and reaches no other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, cast

from appliance.errors import (
    AuthenticationError,
    DrainingError,
    EngineFailedError,
    EngineReportedError,
    EngineUnavailableError,
    InternalError,
    PermissionDeniedError,
    RequestError,
)
from appliance.gateway import media, reply
from appliance.gateway.account import BYTES_PER_TOKEN, RequestAccounting
from appliance.gateway.body import (
    check,
    decode,
    sequences,
    unstreamed,
    wants_usage,
    with_cap,
    with_role,
    with_usage,
)
from appliance.gateway.breaker import Evidence
from appliance.gateway.engine_error import EngineError, read_error
from appliance.gateway.hash_ring import chat_key
from appliance.gateway.outcome import COUNTING, OTHER_USAGE, ending, outcome_of
from appliance.gateway.parts import GatewayContext
from appliance.gateway.routing import Replica
from appliance.gateway.sse import SseFilter, read_usage
from appliance.http1.client import UpstreamCall
from appliance.http1.types import JSON, Request, Responder
from appliance.store.models import Key, UsageRow

LOG = logging.getLogger(__name__)

ERRORS = (b'{"error":', b'{"type":"error"')
"""How a whole answer begins that is an error with status 200."""

ANTHROPIC = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
"""Endpoints whose clients read ``request-id``, too."""

UNEXPLAINED = frozenset({"/v1/messages", "/v1/responses"})
"""Endpoints on which vLLM 0.32 breaks a stream off for a client's mistake and names no status."""

EXPLAIN_S = 2.0
"""Seconds that an engine gets to explain a broken stream; it validates a request before anything else."""

P = ParamSpec("P")


def guarded(
    event: Callable[Concatenate[ProxiedRequest, P], None],
) -> Callable[Concatenate[ProxiedRequest, P], None]:
    """Turn any error inside ``event`` into a 500 of its request: answered once, logged, everything given back.

    Events take positional arguments only: passing keywords on would double what the boundary costs.
    """

    @wraps(event)
    def run(exchange: ProxiedRequest, /, *args: object) -> None:
        try:
            event(exchange, *args)  # type: ignore[call-arg, arg-type]
        except Exception as error:  # noqa: BLE001 - the boundary of one request
            exchange.crashed(error)

    return cast("Callable[Concatenate[ProxiedRequest, P], None]", run)


WAITING = b": waiting for an engine\n\n"
"""A comment in an SSE stream: keeps proxies and clients from giving up, and no client shows it."""


class ProxiedRequest(RequestAccounting):
    """One request from its key to its usage row."""

    __slots__ = (
        "_answered",
        "_begun",
        "_call",
        "_cap",
        "_client",
        "_content_type",
        "_explaining",
        "_parts",
        "_relay",
        "_request",
        "_slow",
        "_status",
        "_streaming",
        "_strip",
        "_tried",
        "_wrote_at",
        "key",
    )

    def __init__(self, shared: GatewayContext, owner: Key, request: Request, client: Responder) -> None:
        super().__init__(shared, owner, UsageRow(time.time(), request.id, owner.user, owner.id, request.path))
        self._request = request
        self._client = client
        self.key: bytes | None = None
        self._answered = False
        """Whether the client has its whole answer, or left."""
        self._begun = False
        self._cap = 0
        """Tokens to which the request's own limit was reduced."""
        self._explaining: tuple[RequestError, float] | None = None
        """Why its stream broke off, while the engine is asked for the reason, and until when."""
        self._content_type = b""
        self._parts: list[bytes] = []
        self._relay: SseFilter | None = None
        self._slow = False
        self._status = 0
        self._streaming = False
        self._strip = False
        self._tried: set[str] | None = None
        self._call: UpstreamCall | None = None
        self._wrote_at = self._began

    @property
    def repeatable(self) -> bool:
        """Whether its answer, now complete, would be the same again: the client's own fault, or a success."""
        return self._row.outcome in ("ok", "rejected") and self._row.status not in (408, 429)

    @guarded
    def begin(self, owner: Key) -> None:
        """Read the request and start it, or let it wait; a refusal is its answer."""
        shared, row = self._shared, self._row
        shared.running.add(self)
        shared.metrics.in_flight += 1
        try:
            request = self._request
            path, body = request.path, request.body
            fields = decode(body)
            name = fields.model
            route = shared.router.find(name, path)
            service, role = route.service, route.role
            row.name, row.model, row.stream = name, service.model, bool(fields.stream)
            if not owner.allows(name):
                message = f"This key may not use `{name[:80]}`; GET /v1/models lists what it may"
                raise PermissionDeniedError(message, code="model_not_allowed", param="model")
            gateway = shared.site.gateway
            over = check(fields, path, context=service.context, max_n=gateway.max_n, capped=service.cap_tokens)
            media.check(body, gateway.media_domains)
            self._admitted = shared.ledger.admit(owner, self._began)
            self.weight = shared.ledger.weight(owner)
            self.size = sequences(fields, path)
            if over:
                body, self._cap = with_cap(body, fields, service.context), service.context
            if row.stream and path not in OTHER_USAGE and not wants_usage(fields):
                self._strip = True
                body = with_usage(body, fields)
            if role is not None:
                row.role = name
                body = with_role(body, role, path)
            self._read_by(service, body)
            request.body = b""
            if len(service.replicas) > 1:
                self.key = chat_key(fields, request.headers, self.user)
            self._position = service.submit(self, self._began)
        except RequestError as error:
            self._fail(error)

    # What the queue calls.

    @guarded
    def granted(self, replica: Replica) -> None:
        """A slot of ``replica``: send the request there."""
        self._replica = replica
        now = self._shared.clock()
        self._row.queue_ms = (now - self._began) * 1000
        self._charge(self._prompt_tokens, now)
        self._post(replica, self._body)

    @guarded
    def refused(self, error: RequestError) -> None:
        """No slot will come."""
        self._fail(error)

    # What the engine's connection calls. Errors in these come back as :meth:`crashed`.

    def on_head(self, status: int, content_type: bytes) -> None:
        """The engine answers: stream what is a stream, gather the rest."""
        self._status = status
        self._content_type = content_type
        if content_type.startswith(b"text/event-stream") and self._explaining is None:
            # The client hears of it with the first frame: until then another replica may still take over.
            self._relay = SseFilter(strip_usage=self._strip, endpoint=self._row.endpoint)
            self._row.status = status

    def on_data(self, data: bytes) -> None:
        """A piece of the engine's answer."""
        relay = self._relay
        if relay is None or self._explaining is not None:
            self._parts.append(data)
            return
        try:
            ready = relay.feed(data)
        except EngineFailedError as error:
            self._cancel_call()
            self.on_failure(error)
            return
        if relay.failed and not self._begun:
            self._failed_early(relay.error)
            return
        row = self._row
        if row.ttft_ms is None and relay.began:
            row.ttft_ms = (self._shared.clock() - self._began) * 1000
        if ready:
            if not self._begun:
                self._begun = True
                if not self._streaming:
                    self._start_stream(self._status)
            self._client.write(ready)

    def on_end(self) -> None:
        """The engine's answer is whole."""
        self._call = None
        relay = self._relay
        if self._explaining is not None:
            self._explained(self._explaining[0])
        elif relay is not None:
            row = self._row
            row.outcome = ending(relay, row.endpoint)
            self._count_stream(relay)
            self._judge(row.outcome)
            self._close_books()
            if not self._streaming:
                self._start_stream(self._status)
            self._client.end_stream(relay.finish())
            self._answered = True
        else:
            self._end_whole()

    @guarded
    def on_failure(self, failure: RequestError) -> None:
        """Fail over before the first byte; afterwards report the error to the client."""
        self._call = None
        if self._ended:
            return
        if self._explaining is not None:
            failure, self._explaining = self._explaining[0], None
        elif isinstance(failure, EngineFailedError) and self._explain(failure):
            return
        self._broke_off(failure)

    # What the client's connection calls.

    @guarded
    def client_gone(self) -> None:
        """Nobody waits for the answer: stop whatever is done for it."""
        if self._ended:
            return
        self._give_up()
        row, relay = self._row, self._relay
        row.outcome = "aborted"
        row.status = row.status or 499
        if relay is not None:
            self._count_stream(relay)
            if ending(relay, row.endpoint) == "ok":
                # It had everything and left at the last word, as OpenAI's own client does.
                row.outcome = "ok"
        if self._replica is not None and not row.prompt_tokens:
            # Also before its first token: who leaves in time has made an engine read it all the same.
            self._estimate(0)
        self._answered = True
        self._close_books()

    @guarded
    def client_slow(self) -> None:
        """The client lags: the engine's socket is not read either."""
        self._slow = True
        if self._call is not None:
            self._call.pause()

    @guarded
    def client_ready(self) -> None:
        """The client caught up."""
        self._slow = False
        if self._call is not None:
            self._call.resume()

    # What the gateway calls.

    @guarded
    def tick(self, now: float) -> None:
        """Look at the time: waited too long, on a dead engine, silent too long; charge what has come so far."""
        service = self._service
        if self._ended or service is None:
            return
        queue = self._shared.site.gateway.queue
        replica, relay = self._replica, self._relay
        if replica is None:
            overdue = service.overdue(self, queue.max_wait_s, now)
            if overdue is not None:
                service.leave(self)
                self._fail(overdue)
                return
        elif self._explaining is not None:
            failure, until = self._explaining
            if now > until:
                self._explaining = None
                self._cancel_call()
                self._broke_off(failure)
                return
        elif self._begun and relay is not None:
            so_far = self._prompt_tokens + relay.frames
            if so_far > self._charged:
                # Tokens, and not a mere head: that comes also from an engine whose core hangs.
                replica.last_token = now
            self._charge(so_far, now)
            return
        elif not replica.breaker.up and not self._parts:
            # It is left alone since this request was sent there, and has not answered it: another one may.
            call = self._call
            if self._elsewhere() and call is not None:
                call.cancel()
        if self._row.stream and not self._begun and now - self._wrote_at > queue.keepalive_s:
            self._wrote_at = now
            if not self._streaming:
                self._start_stream(200)
            self._client.write(WAITING)

    @guarded
    def stop(self) -> None:
        """The drain's deadline has come: say so, in the stream where it has begun."""
        if self._ended:
            return
        error: RequestError = DrainingError("The gateway is stopping; try again shortly", retry_after=5)
        if self._replica is not None:
            # No 503: an edge hands that to another host, and what an engine has begun must not be repeated.
            error = EngineFailedError(str(error), code=error.code)
        self._give_up()
        self._fail(error, "stopped")

    @guarded
    def revoke(self) -> None:
        """Its key is of no use any more: nothing is done for it, wherever it is."""
        if not self._ended:
            self._give_up()
            self._fail(AuthenticationError("This API key was revoked while your request ran"), "revoked")

    def crashed(self, error: Exception) -> None:
        """End the request with a 500: the gateway itself failed on it."""
        self._report(error)
        if self._answered:
            return
        row = self._row
        known = InternalError(f"The gateway failed on this request; its log has the reason under {row.request_id}")
        try:
            if not self._ended:
                self._give_up()
                self._fail(known, "error")
            elif self._streaming:
                self._end_with(known)
            else:
                reply.answer_error(self._client, known, row.endpoint)
            self._answered = True
        except Exception as second:  # noqa: BLE001 - no answer can be written: the client sees its connection close
            self._report(second)
            self._close_books()
            self._client.cut()

    # Inside.

    def _report(self, error: Exception) -> None:
        row = self._row
        fields = {"request_id": row.request_id, "endpoint": row.endpoint, "engine": row.engine}
        LOG.error("the gateway failed on a request", exc_info=error, extra={"fields": fields})
        self._shared.metrics.internal_errors += 1

    def _post(self, replica: Replica, body: bytes) -> None:
        row = self._row
        row.engine = replica.name
        self._call = replica.pool.post(
            self, row.endpoint.encode(), body, b"x-request-id: " + row.request_id.encode()
        )
        if self._slow:
            self._call.pause()

    def _broke_off(self, failure: RequestError) -> None:
        """Count a failure that is the engine's, and fail over or report it."""
        self._blame(str(failure), certain=isinstance(failure, EngineUnavailableError))
        if not self._begun and self._elsewhere():
            return
        self._fail(failure)

    def _failed_early(self, error: EngineError | None) -> None:
        """An error event before the first byte: answer with the status that it names, as if it had come whole."""
        self._cancel_call()
        message = error.message if error is not None else "the engine gave no reason; see its log"
        status = (error.status if error is not None else None) or 502
        failure = EngineReportedError(message, status=status, param=error.param if error is not None else None)
        if status < 500:
            self._fail(failure)
        elif (error is not None and error.status is not None) or not self._explain(failure):
            self._broke_off(failure)

    def _explain(self, failure: RequestError) -> bool:
        """Ask the engine for the same answer whole, to learn why its stream broke off before its first byte.

        Returns whether the question was sent. vLLM 0.32 validates the parameters of these endpoints after a stream
        has begun, and then breaks it off or reports an error without a status; whole, it answers 400 and why.
        """
        replica, row = self._replica, self._row
        if replica is None or self._begun or not row.stream or row.endpoint not in UNEXPLAINED or not replica.open:
            return False
        self._explaining = failure, self._shared.clock() + EXPLAIN_S
        self._parts = []
        self._post(replica, unstreamed(self._body))
        return True

    def _explained(self, failure: RequestError) -> None:
        """The engine answered whole: a 4xx is the client's mistake; else the stream's failure is the engine's."""
        self._explaining = None
        error = read_error(b"".join(self._parts)) if 400 <= self._status < 500 else None
        self._parts = []
        if error is not None:
            self._fail(EngineReportedError(error.message, status=self._status, param=error.param))
        else:
            self._broke_off(failure)

    def _elsewhere(self) -> bool:
        """Send the request to a replica that was not tried; false where there is none."""
        replica, service = self._replica, self._service
        if replica is None or service is None:
            return False
        tried = self._tried or set()
        self._tried = tried
        tried.add(replica.name)
        other = service.move(self, replica, tried)
        if other is None:
            return False
        self._replica = other
        self._status = 0
        self._parts = []
        self._relay = None
        self._post(other, self._body)
        return True

    def _end_whole(self) -> None:
        row, status = self._row, self._status
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        error: EngineError | None = None
        if status >= 400 or body.lstrip()[:15].startswith(ERRORS):
            error = read_error(body)
            if status < 400 and error is not None:
                # An engine that says 200 and means an error must not look like success.
                status = error.status or 502
        if status >= 500:
            row.outcome = "engine_error"
        elif status >= 400:
            row.outcome = "rejected"
        else:
            row.outcome = "ok"
            usage = read_usage(body)
            if usage is not None:
                self._count(usage)
            elif row.endpoint not in COUNTING:
                generates = self._service is not None and self._service.task == "generate"
                self._estimate(len(body) // BYTES_PER_TOKEN if generates else 0)
        self._judge(row.outcome)
        if status >= 500 and self._elsewhere():
            row.outcome = ""
            return
        row.status = status
        client, kind = self._client, self._content_type or JSON
        if status >= 400:
            body, kind = reply.engine_body(error, status, body, row.endpoint), JSON
        headers = self._id_headers()
        self._close_books()
        if not self._streaming:
            client.answer(status, body, kind, headers)
        elif error is not None and row.endpoint in UNEXPLAINED:
            # Comments went out already, so the status did too.
            self._end_with(EngineReportedError(error.message, status=status, param=error.param))
        else:
            client.end_stream(b"data: " + body.replace(b"\n", b" ") + b"\n\n")
        self._answered = True

    def _start_stream(self, status: int) -> None:
        headers = self._id_headers()
        self._streaming = True
        self._client.start_stream(status, headers)

    def _id_headers(self) -> bytes:
        row = self._row
        if row.endpoint in ANTHROPIC:
            headers = reply.id_headers(row.request_id, row.endpoint)
        else:
            headers = b"x-request-id: %s\r\n" % row.request_id.encode()
        if self._cap:
            headers += b"x-max-tokens-capped: %d\r\n" % self._cap
        if not self._position:
            return headers
        waited = row.queue_ms if self._replica is not None else (self._shared.clock() - self._began) * 1000
        return b"%sx-queue-position: %d\r\nx-queue-wait-ms: %d\r\n" % (headers, self._position, waited)

    def _give_up(self) -> None:
        """Leave the queue, or the engine."""
        if self._replica is None and self._service is not None:
            self._service.leave(self)
        self._cancel_call()

    def _cancel_call(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _fail(self, error: RequestError, outcome: str | None = None) -> None:
        """Answer ``error``: in the stream where it has begun, whole before."""
        row = self._row
        row.outcome = outcome or outcome_of(error)
        relay = self._relay
        if relay is not None:
            self._count_stream(relay)
        if not self._streaming:
            row.status = error.status
        headers = self._id_headers()
        self._close_books()
        if self._streaming:
            self._end_with(error)
        else:
            reply.answer_error(self._client, error, row.endpoint, headers)
        self._answered = True

    def _end_with(self, error: RequestError) -> None:
        """End the stream with ``error`` as its last event."""
        relay = self._relay
        opening = bytes(relay.opening) if relay is not None and relay.opening is not None else None
        sequence = relay.frames if relay is not None else 0
        self._client.end_stream(reply.error_event(error, self._row.endpoint, opening=opening, sequence=sequence))

    def _judge(self, outcome: str) -> None:
        """Report an ending to the replica's breaker; a client's mistake proves nothing about an engine."""
        if outcome == "rejected":
            return
        if outcome != "ok":
            self._blame(f"an answer ended as {outcome}")
        elif self._replica is not None:
            self._replica.breaker.succeeded()
            self._replica.last_token = self._shared.clock()

    def _blame(self, why: str, *, certain: bool = False) -> None:
        """Count a failure against the replica; a canary decides where this request alone may be the reason."""
        replica, service = self._replica, self._service
        if replica is None or service is None:
            return
        evidence = None if certain else Evidence(self.line, hash(self._body))
        if replica.breaker.failed(why, self._shared.clock(), evidence=evidence):
            service.went_down()
        else:
            self._shared.suspect(replica)

    def _close_books(self) -> None:
        """Give everything back; once."""
        if self._ended:
            return
        self._ended = True
        self._shared.running.discard(self)
        now = self._shared.clock()
        try:
            self._settle(now)
        except Exception as error:  # noqa: BLE001 - the answer goes out and the slot goes back all the same
            self._report(error)
        if self._service is not None and self._replica is not None:
            self._service.release(self._replica, self, now)
