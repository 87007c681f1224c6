"""The gateway as an application: routing, authorisation and dispatch.

Every path that :mod:`~appliance.gateway.paths` does not name is 404, so an engine's control paths cannot be reached
however they are spelled.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass

from appliance import __version__
from appliance.contract.model import Site
from appliance.engines.lifecycle import EngineControl
from appliance.errors import (
    AuthenticationError,
    DrainingError,
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    PausedError,
    RequestError,
    StoreError,
)
from appliance.gateway import paths, reply
from appliance.gateway.auth import POLL_S, Authenticator
from appliance.gateway.background import keep_going
from appliance.gateway.body_encoding import decoded
from appliance.gateway.breaker import CAUSES
from appliance.gateway.cors import BrowserOrigins
from appliance.gateway.drains import DrainFile, Drains
from appliance.gateway.end_user import caller
from appliance.gateway.health import HealthMonitor
from appliance.gateway.idempotency import IdempotencyCache
from appliance.gateway.lifecycle import GatewayContext, ProxiedRequest, Running, error_outcome
from appliance.gateway.limits import Bucket, Ledger
from appliance.gateway.metrics import Metrics, MetricSample
from appliance.gateway.routing import Router, Service
from appliance.gateway.swap_controller import SwapController
from appliance.gateway.usage_writer import UsageWriter
from appliance.http1.types import ClientResponder, Request
from appliance.http1.writer import WriteCoalescer
from appliance.store.keys import KeyStore
from appliance.store.models import Key, UsageRow

LOG = logging.getLogger(__name__)

TICK_S = 0.5
"""Seconds between checks of all waiting and running requests: deadlines, keep-alive comments, charges."""

SMALL_BODY = 64 * 1024
"""Largest body in bytes on a path that needs none; it is ignored."""

NOT_FOUND_LINES = 60
"""Log lines per minute about unknown paths: one misconfigured client requests the same path for ever."""


class Authenticated:
    """The key of a request, authenticated before its body was read."""

    __slots__ = ("generation", "key")

    def __init__(self, key: Key, generation: int) -> None:
        self.key = key
        self.generation = generation
        """The authenticator's generation at that time."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of the whole gateway: its ``reason``, and the seconds after which clients may retry."""

    reason: str
    retry_after_s: float

    def error(self) -> PausedError:
        """Return the error of a request during the pause."""
        return PausedError(f"The service is paused: {self.reason}", retry_after=self.retry_after_s)


class GatewayApp:
    """The application for one site. The caller opens and closes the stores.

    Every method runs on the event loop's thread. :mod:`appliance.http1` calls ``begin``, then ``handle`` for a
    complete request, or ``too_large``, ``record_incomplete`` and ``refuse`` for a rejected one.
    """

    def __init__(
        self,
        site: Site,
        keys: KeyStore,
        usage: UsageWriter,
        drain_file: DrainFile,
        control: EngineControl | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._site = site
        self._authenticator = Authenticator()
        self._keys = keys
        self._changes = -1
        self._running: set[Running] = set()
        self._take_keys(keys.snapshot(self._changes))
        self._usage = usage
        self.coalescer = WriteCoalescer(self._loop)
        self.router = Router(site, self.coalescer, self._notice)
        self.drains = Drains(self.router, drain_file, self._notice)
        self._metrics = Metrics(self._samples)
        self._health = HealthMonitor(self.router, site.gateway)
        self._context = GatewayContext(
            site=site,
            router=self.router,
            ledger=Ledger(site.limits, site.users),
            usage=usage,
            metrics=self._metrics,
            running=self._running,
            clock=time.monotonic,
            suspect=self._health.suspect,
        )
        self._idempotency = IdempotencyCache(site.gateway.idempotency_s, self._loop.time)
        self._origins = BrowserOrigins(site.gateway.browser_origins)
        self._browsers = self._origins.named
        """Whether any origin is allowed: without one, no request is examined for it."""
        self.swap_controller: SwapController | None = None
        if control is not None:
            self.swap_controller = SwapController(
                site=site, router=self.router, control=control, health=self._health, clock=self._loop.time
            )
            self.swap_controller.start()
        now = int(time.time())
        self._model_cards = {
            name: _model_card(name, route.service, now) for name, route in self.router.routes.items()
        }
        self._not_found = Bucket(NOT_FOUND_LINES, NOT_FOUND_LINES, self._loop.time())
        self._draining = False
        self._pause: Pause | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._keys_unreadable = False
        self._spawn(keep_going("reading the keys", self._poll_keys))
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    # Called by a connection.

    def begin(self, request: Request) -> int:
        """Authenticate before the body is read; return the body's size limit in bytes."""
        if request.path not in paths.INFERENCE or request.method != "POST":
            return SMALL_BODY
        if self._draining:
            raise DrainingError("The gateway is stopping; try again shortly", retry_after=5)
        request.context = Authenticated(self._authenticate(request), self._authenticator.generation)
        if self._pause is not None:
            raise self._pause.error()
        return self._site.gateway.max_body_bytes

    def too_large(self, request: Request, error: RequestError) -> RequestError:
        """Return the error of the path or the method, which takes precedence over ``error`` of the body's size."""
        return self._refusal(request) or error

    def record_incomplete(self, request: Request, error: RequestError | None) -> None:
        """Record a request whose body is incomplete (``error`` is ``None``) or was rejected with ``error``."""
        if isinstance(request.context, Authenticated):
            owner = request.context.key
            row = UsageRow(
                started_at=time.time(),
                request_id=request.id,
                user=owner.user,
                key_id=owner.id,
                endpoint=request.path,
            )
            row.status, row.outcome = (499, "aborted") if error is None else (error.status, error_outcome(error))
            self._metrics.count(row)
            self._usage.put(row)

    def handle(self, request: Request, client: ClientResponder) -> None:
        """Respond to a complete request, now or later; raises :class:`RequestError` for a rejection."""
        path = request.path
        if path in paths.INFERENCE and request.method == "POST":
            self._infer(request, client)
            return
        refusal = self._refusal(request)
        if refusal is not None:
            raise refusal
        if request.method == "OPTIONS":
            # A preflight has no key and needs no engine.
            allow = b"allow: %s\r\n" % ", ".join(paths.methods(path)).encode()
            preflight = self._origins.preflight(request.headers) if b"origin" in request.headers else b""
            client.respond(204, b"", headers=allow + preflight)
        elif path in paths.OPERATIONS:
            self._operations(path, client)
        else:
            self._list_models(path, self._authenticate(request), client)

    def refuse(self, request: Request, error: RequestError, client: ClientResponder) -> None:
        """Respond with ``error`` in the shape of the API that the client uses."""
        reply.respond_error(client, error, reply.api_path(request))

    def complete_headers(self, request: Request, headers: bytes) -> bytes:
        """Add the request's id, and the CORS lines for pages of other origins."""
        if self._browsers:
            headers += self._origins.headers(request.headers.get(b"origin"))
        elif headers.startswith(reply.ID):
            return headers
        return reply.complete_headers(request, headers)

    # Called by `main` and by the control socket.

    def drain(self) -> None:
        """Accept no new requests; those that run continue."""
        self._draining = True

    def pause(self, reason: str, retry_after_s: float) -> None:
        """Reject new and waiting requests because of ``reason`` until :meth:`resume`; running ones finish.

        Cheap to repeat. A restart of the gateway ends it.
        """
        before, self._pause = self._pause, Pause(reason, retry_after_s)
        if before is None:
            LOG.warning("the gateway is paused: %s", reason)
            for service in self.router.services.values():
                service.refuse(self._pause.error())

    def resume(self) -> None:
        """Accept requests again."""
        if self._pause is not None:
            LOG.warning("the gateway is not paused any more")
            self._pause = None

    def stop(self) -> None:
        """End all requests with an error, because the drain's deadline has passed."""
        for request in [*self._running]:
            request.stop()

    def status(self) -> dict[str, object]:
        """Return the loaded models, the engines and the numbers of running and waiting requests, for JSON."""
        return {
            "models": {
                name: {
                    "task": service.task,
                    "loaded": service.served,
                    "on_demand": service.on_demand,
                    "waiting": service.queue.waiting,
                    "running": service.queue.running,
                }
                for name, service in self.router.services.items()
            },
            "engines": {
                replica.name: {
                    "model": replica.model,
                    "state": "up" if replica.up else "down" if replica.resident else "not loaded",
                    "draining": replica.drained,
                    "in_flight": replica.in_flight,
                    "slots": replica.slots,
                    "why": replica.breaker.why,
                }
                for replica in self.router.replicas
            },
            "on_demand": self.swap_controller.status() if self.swap_controller is not None else {},
            "draining": self._draining,
            **self.pause_status(),
        }

    def pause_status(self) -> dict[str, object]:
        """Return the reason of the pause and the number of requests in flight, for JSON."""
        return {
            "paused": self._pause.reason if self._pause is not None else None,
            "in_flight": len(self._running),
        }

    async def close(self) -> None:
        """Stop all background tasks and close the connections to engines."""
        if self.swap_controller is not None:
            await self.swap_controller.close()
        self._ticker.cancel()
        self._health.close()
        for task in self._tasks:
            task.cancel()
        self.router.close()

    # Inside.

    def _notice(self) -> None:
        if self.swap_controller is not None:
            self.swap_controller.notice()

    def _infer(self, request: Request, client: ClientResponder) -> None:
        limit = self._site.gateway.max_body_bytes
        try:
            if self._pause is not None:
                # The pause began while the body arrived.
                raise self._pause.error()
            request.body = decoded(request.body, request.headers.get(b"content-encoding"), limit)
        except RequestError as error:
            self.record_incomplete(request, error)
            raise
        known, owner = request.context, None
        if isinstance(known, Authenticated) and known.generation == self._authenticator.generation:
            owner = known.key
        if owner is None or owner.expires_at is not None or owner.end_users:
            # Again: keys may have changed while the body arrived, or while the request waited on its connection.
            owner = self._authenticate(request)
        key = request.headers.get(b"idempotency-key")
        if key is None:
            proxied = ProxiedRequest(self._context, owner, request, client)
            client.listener = proxied
        else:
            recording = self._idempotency.find(owner.scope, key, path=request.path, body=request.body)
            if recording is not None:
                recording.follow(client)
                return
            recording = self._idempotency.record(owner.scope, key, path=request.path, body=request.body)
            recording.follow(client)
            proxied = ProxiedRequest(self._context, owner, request, recording)
            recording.request = proxied
        proxied.begin(owner)

    def _refusal(self, request: Request) -> RequestError | None:
        """Return the error of the request's path or method, if any; count and log unknown paths."""
        path, method = request.path, request.method
        allow = paths.methods(path)
        if method in allow:
            return None
        if allow:
            return MethodNotAllowedError(f"{path[:100]} requires {allow[0]}, not {method[:20]}", allow=allow)
        label = paths.label(path)
        self._metrics.not_found[label] = self._metrics.not_found.get(label, 0) + 1
        self._not_found.refill(self._loop.time())
        if self._not_found.level >= 1:
            self._not_found.level -= 1
            fields = {"request_id": request.id, "method": method, "path": paths.redacted(path)}
            LOG.info("a client requested an unknown path", extra={"fields": fields})
        suggestion = paths.suggestion(path) or "GET /v1/models lists the models, docs/gateway.md the endpoints"
        return NotFoundError(f"There is nothing at {path[:100]}; {suggestion}")

    def _authenticate(self, request: Request) -> Key:
        """Return the key of the first valid credential, for the end user that the request names."""
        try:
            key = self._authenticator.authenticate_any(request.headers)
        except AuthenticationError:
            self._metrics.unauthorized += 1
            raise
        return caller(key, request.headers, request.body) if key.end_users else key

    def _operations(self, path: str, client: ClientResponder) -> None:
        if path == "/health":
            client.respond(200, b'{"status":"ok"}')
        elif path == "/metrics":
            client.respond(200, self._metrics.text(), reply.TEXT)
        elif self._draining:
            client.respond(503, b'{"status":"draining","engines":{}}')
        elif self._pause is not None:
            body = {"status": f"paused: {self._pause.reason}", "engines": {}}
            client.respond(503, json.dumps(body).encode())
        else:
            self._spawn(self._ready(client))

    async def _ready(self, client: ClientResponder) -> None:
        try:
            readiness = await self._health.check()
        except Exception:
            # Nothing awaits this task: without a response here, the client would wait for ever.
            LOG.exception("/ready failed")
            error = InternalError("/ready failed; the gateway's log has the reason")
            reply.respond_error(client, error, "/ready")
            return
        body: dict[str, object] = {
            "status": "ready" if readiness.ready else "not ready",
            "engines": readiness.engines,
        }
        if not readiness.ready:
            body["unserved"] = readiness.unserved
        client.respond(200 if readiness.ready else 503, json.dumps(body).encode())

    def _list_models(self, path: str, key: Key, client: ClientResponder) -> None:
        offered = {name: card for name, card in self._model_cards.items() if key.allows(name)}
        if path == "/v1/models":
            body: object = {"object": "list", "data": list(offered.values())}
        else:
            name = path.removeprefix("/v1/models/")
            if name not in offered:
                message = f"The model `{name[:80]}` does not exist; GET /v1/models lists the models"
                raise NotFoundError(message, code="model_not_found", param="model")
            body = offered[name]
        client.respond(200, json.dumps(body).encode())

    def _tick(self) -> None:
        now = self._loop.time()
        # Scheduled first, so that no error of a request ends the timer.
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        for request in [*self._running]:
            request.tick(now)

    def _take_keys(self, found: tuple[int, list[Key]] | None) -> None:
        if found is not None:
            self._changes = found[0]
            self._authenticator.replace(found[1])
            revoked = {key.id for key in found[1] if key.revoked_at is not None}
            for request in [request for request in self._running if request.key_id in revoked]:
                request.revoke()

    async def _poll_keys(self) -> None:
        await asyncio.sleep(POLL_S)
        try:
            # In a thread: a database behind a network must not block a stream.
            self._take_keys(await asyncio.to_thread(self._keys.snapshot, self._changes))
            self._keys_unreadable = False
        except StoreError as error:
            if not self._keys_unreadable:
                # The last snapshot stays in force; a gateway without keys would reject every request.
                LOG.error("the keys cannot be read, changes to them take effect later: %s", error)  # noqa: TRY400
            self._keys_unreadable = True

    def _samples(self) -> Iterator[MetricSample]:
        replicas, services = self.router.replicas, self.router.services.values()
        yield MetricSample("info", "The version of the gateway.", {(__version__,): 1}, ("version",))
        pause = self._pause
        yield MetricSample(
            "paused",
            "Whether the whole gateway is paused, and why.",
            {(pause.reason if pause is not None else "",): float(pause is not None)},
            ("reason",),
        )
        yield MetricSample(
            "engine_up",
            "Whether the engine is loaded and generated its last canary token.",
            {(replica.name,): float(replica.up) for replica in replicas},
            ("engine",),
        )
        yield MetricSample(
            "replica_draining",
            "Whether the replica is drained: it gets no new requests.",
            {(replica.name,): float(replica.drained is not None) for replica in replicas},
            ("engine",),
        )
        yield MetricSample(
            "replica_down",
            "Whether the replica is loaded and down for this reason.",
            {
                (replica.name, cause): float(replica.resident and replica.breaker.cause == cause)
                for replica in replicas
                for cause in CAUSES
            },
            ("engine", "reason"),
        )
        yield MetricSample(
            "canary_seconds",
            "Seconds that the last canary token took.",
            {(replica.name,): replica.canary_s for replica in replicas if replica.canary_s is not None},
            ("engine",),
        )
        yield MetricSample(
            "engine_requests_in_flight",
            "Sequences running on the engine; a request for several choices counts once for each.",
            {(replica.name,): float(replica.in_flight) for replica in replicas},
            ("engine",),
        )
        yield MetricSample(
            "queue_length",
            "Requests waiting for a slot.",
            {(service.model,): float(service.queue.waiting) for service in services},
            ("model",),
        )
        swaps = self.swap_controller
        if swaps is not None:
            yield MetricSample("swaps", "Models loaded on demand.", {(): swaps.swaps}, counter=True)
            yield MetricSample("swap_failures", "Loads that failed.", {(): swaps.failures}, counter=True)
            yield MetricSample("last_swap_seconds", "Seconds that the last load took.", {(): swaps.last_swap_s})
        yield MetricSample(
            "usage_rows_dropped", "Usage rows lost to a full disk.", {(): self._usage.dropped}, counter=True
        )

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("a task of the gateway ended with an error", exc_info=error)


def _model_card(name: str, service: Service, created: int) -> dict[str, object]:
    """Return the entry of GET /v1/models for a model or role: OpenAI's fields, vLLM's, and its task."""
    card: dict[str, object] = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "appliance",
        "max_model_len": service.context,
        "task": service.task,
    }
    if name != service.model:
        card["root"] = service.model
    return card
