"""The way of one inference request: read, route, send, relay, account. Whatever happens, one usage row."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import cast

from appliance.errors import (
    BodyTooLargeError,
    EngineFailedError,
    EngineTimeoutError,
    EngineUnavailableError,
    RequestError,
)
from appliance.gateway.keys import Key
from appliance.gateway.limits import Ledger
from appliance.gateway.metrics import Metrics
from appliance.gateway.request import decode, wants_usage, with_role, with_usage
from appliance.gateway.respond import Receive, Send, answer, answer_error, error_event
from appliance.gateway.route import DOWN_S, Router, Target, pick
from appliance.gateway.stream import Relay, Usage, read_usage
from appliance.gateway.upstream import Connection
from appliance.gateway.usage import UsageRow, UsageWriter

SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Client:
    """The client's side of an exchange, and whether it is still there.

    ASGI servers neither cancel an application whose client left nor let its ``send`` fail, so without
    :meth:`watch` an engine would go on generating for nobody.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self.receive = receive
        self.send = send
        self.gone = False
        self.started = False

    async def body(self, headers: list[tuple[bytes, bytes]], limit: int) -> bytes:
        """The request's body; raises :class:`BodyTooLargeError` before reading more than ``limit`` bytes."""
        too_large = BodyTooLargeError(f"The body is over the limit of {limit} bytes")
        for name, value in headers:
            if name == b"content-length" and (not value.isdigit() or len(value) > 15 or int(value) > limit):
                raise too_large
        parts = []
        size = 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise asyncio.CancelledError
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise too_large
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def watch(self, task: asyncio.Task[None]) -> None:
        """Cancel ``task`` as soon as the client leaves, in whatever it is waiting for."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        task.cancel()


class Exchange:
    """One request from its key to its usage row."""

    def __init__(
        self,
        key: Key,
        endpoint: str,
        client: Client,
        *,
        router: Router,
        ledger: Ledger,
        usage: UsageWriter,
        metrics: Metrics,
    ) -> None:
        self._client = client
        self._router = router
        self._ledger = ledger
        self._usage = usage
        self._metrics = metrics
        self._began = time.monotonic()
        self._row = UsageRow(time.time(), secrets.token_hex(12), key.user, key.id, endpoint)
        self._admitted = False

    async def run(self, headers: list[tuple[bytes, bytes]], max_body_bytes: int) -> None:
        """Answer the request, whatever happens: the client leaves, an engine fails, the server stops."""
        row, client = self._row, self._client
        task = cast("asyncio.Task[None]", asyncio.current_task())
        watcher: asyncio.Task[None] | None = None
        self._metrics.in_flight.inc()
        try:
            body = await client.body(headers, max_body_bytes)
            watcher = asyncio.create_task(client.watch(task))
            await self._forward(body)
        except asyncio.CancelledError:
            task.uncancel()
            if client.gone:
                row.outcome = "aborted"
                row.status = row.status or 499
            else:
                # The server cancels what outlives its drain deadline; the client shall know why.
                stopping = EngineUnavailableError("The gateway is stopping; try again shortly", retry_after=5)
                await self._report(stopping, watcher)
                row.outcome = "stopped"
        except RequestError as error:
            await self._report(error, watcher)
        finally:
            if watcher is not None:
                watcher.cancel()
            self._close_books()

    async def _forward(self, body: bytes) -> None:
        row = self._row
        fields = decode(body)
        route = self._router.find(fields.model, row.endpoint)
        row.name, row.model, row.stream = fields.model, route.model, bool(fields.stream)
        self._ledger.admit(row.user, self._began)
        self._admitted = True
        strip = False
        if row.stream and row.endpoint != "/v1/responses" and not wants_usage(fields):
            strip = True
            body = with_usage(body, fields)
        if route.role is not None:
            body = with_role(body, route.role, row.endpoint)
        target, connection = await self._send(route.targets, body)
        try:
            row.status = connection.status
            if connection.content_type.startswith(b"text/event-stream"):
                await self._relay_stream(connection, Relay(strip_usage=strip))
            else:
                await self._relay_whole(connection)
        finally:
            target.pool.release(connection)

    async def _send(self, targets: list[Target], body: bytes) -> tuple[Target, Connection]:
        """Hand the request to a replica; where nothing listens, to the next one."""
        tried: set[str] = set()
        while True:
            target = pick(targets, tried, self._began)
            tried.add(target.name)
            self._row.engine = target.name
            try:
                path, request_id = self._row.endpoint.encode(), self._row.request_id.encode()
                return target, await target.pool.send(path, body, request_id)
            except EngineUnavailableError:
                target.down_until = time.monotonic() + DOWN_S

    async def _relay_whole(self, connection: Connection) -> None:
        row = self._row
        pieces = []
        while piece := await connection.read():
            pieces.append(piece)
        body = b"".join(pieces)
        if connection.status >= 500:
            row.outcome = "engine_error"
        elif connection.status >= 400:
            row.outcome = "rejected"
        elif body.lstrip()[:9] == b'{"error":':
            # An engine that says 200 and means an error must not look like success.
            row.outcome, row.status = "engine_error", 502
        else:
            row.outcome = "ok"
            self._count(read_usage(body))
        self._client.started = True
        content_type = connection.content_type or b"application/json"
        await answer(self._client.send, row.status, body, content_type, self._id_header)

    async def _relay_stream(self, connection: Connection, relay: Relay) -> None:
        row, send = self._row, self._client.send
        self._client.started = True
        headers = [*SSE_HEADERS, self._id_header]
        await send({"type": "http.response.start", "status": connection.status, "headers": headers})
        try:
            while data := await connection.read():
                ready = relay.feed(data)
                if row.ttft_ms is None and relay.began:
                    row.ttft_ms = self._elapsed_ms()
                if ready:
                    await send({"type": "http.response.body", "body": ready, "more_body": True})
            row.outcome = _ending(relay, row.endpoint)
            await send({"type": "http.response.body", "body": relay.finish()})
        finally:
            self._count(relay.usage)
            if relay.usage is None:
                row.completion_tokens = relay.estimated_tokens
                row.estimated = True

    async def _report(self, error: RequestError, watcher: asyncio.Task[None] | None) -> None:
        """Tell the client, in the stream where it has begun, in a whole answer before."""
        if watcher is not None:
            # The last words are short; nobody needs to be told to stop saying them.
            watcher.cancel()
        row = self._row
        row.outcome = _outcome(error)
        if self._client.started:
            await self._client.send({"type": "http.response.body", "body": error_event(error)})
        else:
            row.status = error.status
            self._client.started = True
            await answer_error(self._client.send, error, self._id_header)

    def _count(self, usage: Usage | None) -> None:
        if usage is not None:
            self._row.prompt_tokens = usage.prompt
            self._row.completion_tokens = usage.completion
            self._row.cached_tokens = usage.cached

    def _close_books(self) -> None:
        row = self._row
        row.duration_ms = self._elapsed_ms()
        if row.outcome == "aborted" and not row.completion_tokens:
            row.estimated = True
        if self._admitted:
            self._ledger.finish(row.user, row.prompt_tokens + row.completion_tokens, time.monotonic())
        self._metrics.in_flight.dec()
        self._metrics.count(row)
        self._usage.put(row)

    def _elapsed_ms(self) -> float:
        return (time.monotonic() - self._began) * 1000

    @property
    def _id_header(self) -> tuple[bytes, bytes]:
        return b"x-request-id", self._row.request_id.encode()


def _ending(relay: Relay, endpoint: str) -> str:
    """How a stream ended that HTTP calls complete; /v1/responses has no ``[DONE]``, its last event has usage."""
    if relay.failed:
        return "engine_error"
    whole = relay.usage is not None if endpoint == "/v1/responses" else relay.done
    return "ok" if whole else "truncated"


def _outcome(error: RequestError) -> str:
    if isinstance(error, EngineUnavailableError):
        return "unavailable"
    if isinstance(error, EngineTimeoutError):
        return "timeout"
    if isinstance(error, EngineFailedError):
        return "engine_failed"
    return "rejected" if error.status < 500 else "error"
