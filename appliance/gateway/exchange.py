"""The way of one inference request, as events: begun, granted a slot, answered by an engine, ended.

No task and no future: each event is a call from the client's connection, the queue or the engine's connection, and
each leaves the exchange in a state that the next one may find. Whatever happens, one usage row and one answer.
"""

from __future__ import annotations

import asyncio
import time

from appliance.errors import (
    AuthenticationError,
    DrainingError,
    EngineFailedError,
    EngineUnavailableError,
    PermissionDeniedError,
    RequestError,
)
from appliance.gateway import media, reply
from appliance.gateway.account import BYTES_PER_TOKEN, Account
from appliance.gateway.affinity import chat_key
from appliance.gateway.incoming import Request
from appliance.gateway.keys import Key
from appliance.gateway.outcome import COUNTING, OTHER_USAGE, ending, outcome_of
from appliance.gateway.parts import Client, Parts
from appliance.gateway.request import check, decode, sequences, wants_usage, with_role, with_usage
from appliance.gateway.route import Replica
from appliance.gateway.stream import Relay, read_usage
from appliance.gateway.upstream import Connection, Rebound, cancel
from appliance.gateway.usage import UsageRow

WAITING = b": waiting for an engine\n\n"
"""A comment in an SSE stream: keeps proxies and clients from giving up, and no client shows it."""


class Exchange(Account, Rebound):
    """One request from its key to its usage row."""

    __slots__ = (
        "_begun",
        "_client",
        "_content_type",
        "_parts",
        "_relay",
        "_request",
        "_slow",
        "_status",
        "_streaming",
        "_strip",
        "_tried",
        "_way",
        "_wrote_at",
        "key",
    )

    def __init__(self, shared: Parts, owner: Key, request: Request, client: Client, request_id: str) -> None:
        super().__init__(shared, owner, UsageRow(time.time(), request_id, owner.user, owner.id, request.path))
        self._request = request
        self._client = client
        self.key: bytes | None = None
        self._begun = False
        self._content_type = b""
        self._parts: list[bytes] = []
        self._relay: Relay | None = None
        self._slow = False
        self._status = 0
        self._streaming = False
        self._strip = False
        self._tried: set[str] | None = None
        self._way: Connection | asyncio.Task[None] | None = None
        self._wrote_at = self._began

    @property
    def repeatable(self) -> bool:
        """Whether its answer, now complete, would be the same again: the client's own fault, or a success."""
        return self._row.outcome in ("ok", "rejected") and self._row.status not in (408, 429)

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
            check(fields, path, context=service.context, max_n=gateway.max_n)
            media.check(body, gateway.media_domains)
            self._admitted = shared.ledger.admit(owner, self._began)
            self.weight = shared.ledger.weight(owner)
            self.size = sequences(fields, path)
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

    def granted(self, replica: Replica) -> None:
        """A slot of ``replica``: send the request there."""
        now = self._shared.clock()
        self._row.queue_ms = (now - self._began) * 1000
        self._charge(self._prompt_tokens, now)
        self._replica = replica
        self._post(replica)

    def refused(self, error: RequestError) -> None:
        """No slot will come."""
        self._fail(error)

    # What the engine's connection calls.

    def on_rebound(self, way: Connection | asyncio.Task[None]) -> None:
        """The request travels on ``way`` now."""
        self._way = way
        if self._slow and isinstance(way, Connection):
            way.pause()

    def on_head(self, status: int, content_type: bytes) -> None:
        """The engine answers: stream what is a stream, gather the rest."""
        self._status = status
        self._content_type = content_type
        if content_type.startswith(b"text/event-stream"):
            # The client hears of it with the first frame: until then another replica may still take over.
            self._relay = Relay(strip_usage=self._strip)
            self._row.status = status

    def on_data(self, data: bytes) -> None:
        """A piece of the engine's answer."""
        relay = self._relay
        if relay is None:
            self._parts.append(data)
            return
        try:
            ready = relay.feed(data)
        except EngineFailedError as error:
            cancel(self._way)
            self.on_failure(error)
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
        self._way = None
        relay = self._relay
        if relay is not None:
            row = self._row
            row.outcome = ending(relay, row.endpoint)
            self._count_stream(relay)
            self._judge(row.outcome)
            self._close_books()
            if not self._streaming:
                self._start_stream(self._status)
            self._client.end_stream(relay.finish())
        else:
            self._end_whole()

    def on_failure(self, failure: RequestError) -> None:
        """The engine broke off: another replica before its first byte, the truth to the client after it."""
        self._way = None
        if self._ended:
            return
        self._blame(str(failure), at_once=isinstance(failure, EngineUnavailableError))
        if not self._begun and self._elsewhere():
            return
        self._fail(failure)

    # What the client's connection calls.

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
        self._close_books()

    def client_slow(self) -> None:
        """The client lags: the engine's socket is not read either."""
        self._slow = True
        if isinstance(self._way, Connection):
            self._way.pause()

    def client_ready(self) -> None:
        """The client caught up."""
        self._slow = False
        if isinstance(self._way, Connection):
            self._way.resume()

    # What the gateway calls.

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
        elif self._begun and relay is not None:
            so_far = self._prompt_tokens + relay.frames
            if so_far > self._charged:
                # Tokens, and not a mere head: that comes also from an engine whose core hangs.
                replica.last_token = now
            self._charge(so_far, now)
            return
        elif not replica.breaker.up and not self._parts:
            # It is left alone since this request was sent there, and has not answered it: another one may.
            way = self._way
            if self._elsewhere():
                cancel(way)
        if self._row.stream and not self._begun and now - self._wrote_at > queue.keepalive_s:
            self._wrote_at = now
            if not self._streaming:
                self._start_stream(200)
            self._client.write(WAITING)

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

    def revoke(self) -> None:
        """Its key is of no use any more: nothing is done for it, wherever it is."""
        if not self._ended:
            self._give_up()
            self._fail(AuthenticationError("This API key was revoked while your request ran"), "revoked")

    # Inside.

    def _post(self, replica: Replica) -> None:
        row = self._row
        row.engine = replica.name
        self._way = replica.pool.post(
            self, row.endpoint.encode(), self._body, b"x-request-id: " + row.request_id.encode()
        )

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
        self._post(other)
        return True

    def _end_whole(self) -> None:
        row, status = self._row, self._status
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if status >= 500:
            row.outcome = "engine_error"
        elif status >= 400:
            row.outcome = "rejected"
        elif body.lstrip()[:9] == b'{"error":':
            # An engine that says 200 and means an error must not look like success.
            row.outcome, status = "engine_error", 502
        else:
            row.outcome = "ok"
            usage = read_usage(body)
            if usage is not None:
                self._count(usage)
            elif row.endpoint != COUNTING:
                generates = self._service is not None and self._service.task == "generate"
                self._estimate(len(body) // BYTES_PER_TOKEN if generates else 0)
        self._judge(row.outcome)
        if status >= 500 and self._status >= 500 and self._elsewhere():
            row.outcome = ""
            return
        row.status = status
        client, kind = self._client, self._content_type or reply.JSON
        headers = self._id_headers()
        self._close_books()
        if self._streaming:
            # Comments went out already, so the status did too.
            client.end_stream(b"data: " + body.replace(b"\n", b" ") + b"\n\n")
        else:
            client.answer(status, body, kind, headers)

    def _start_stream(self, status: int) -> None:
        self._streaming = True
        self._client.start_stream(status, self._id_headers())

    def _id_headers(self) -> bytes:
        row = self._row
        if not self._position:
            return b"x-request-id: %s\r\n" % row.request_id.encode()
        waited = row.queue_ms if self._replica is not None else (self._shared.clock() - self._began) * 1000
        return b"x-request-id: %s\r\nx-queue-position: %d\r\nx-queue-wait-ms: %d\r\n" % (
            row.request_id.encode(),
            self._position,
            waited,
        )

    def _give_up(self) -> None:
        """Leave the queue, or the engine."""
        if self._replica is None and self._service is not None:
            self._service.leave(self)
        way, self._way = self._way, None
        cancel(way)

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
            self._client.end_stream(reply.error_event(error, row.endpoint))
        else:
            self._client.answer_error(error, row.endpoint, headers)

    def _judge(self, outcome: str) -> None:
        """Tell the replica's breaker; what a client did wrong says nothing about an engine."""
        if outcome not in ("ok", "rejected"):
            self._blame(f"an answer ended as {outcome}")
        elif self._replica is not None:
            self._replica.breaker.succeeded()
            if outcome == "ok":
                self._replica.last_token = self._shared.clock()

    def _blame(self, why: str, *, at_once: bool = False) -> None:
        """Hold a failure against the replica; its service is told when that takes it down."""
        replica, service = self._replica, self._service
        if replica is None or service is None:
            return
        if replica.breaker.failed(why, self._shared.clock(), at_once=at_once):
            service.went_down()

    def _close_books(self) -> None:
        """Give everything back; once."""
        if self._ended:
            return
        self._ended = True
        self._shared.running.discard(self)
        now = self._shared.clock()
        self._settle(now)
        if self._service is not None and self._replica is not None:
            self._service.release(self._replica, self, now)
