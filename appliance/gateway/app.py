"""The gateway as an application: what is on offer, who may, and who answers.

Every path that is not in :data:`INFERENCE` or among the few GETs is 404, so an engine's control paths cannot be
reached however they are spelled.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Coroutine, Iterator
from itertools import count

from appliance.config import Site
from appliance.engines.load import EngineControl
from appliance.errors import (
    AuthenticationError,
    DrainingError,
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
    StoreError,
)
from appliance.gateway import reply
from appliance.gateway.body_encoding import decoded
from appliance.gateway.canaries import Canaries
from appliance.gateway.connection import ClientConnection
from appliance.gateway.cors import BrowserOrigins
from appliance.gateway.exchange import Exchange
from appliance.gateway.idempotency import Tapes
from appliance.gateway.incoming import Request
from appliance.gateway.keys import POLL_S, Authenticator, Key
from appliance.gateway.limits import Ledger
from appliance.gateway.metrics import Metrics, Sample
from appliance.gateway.outbox import Outbox
from appliance.gateway.parts import Parts
from appliance.gateway.route import Router
from appliance.gateway.swapper import SwapController
from appliance.gateway.usage import UsageRow, UsageWriter
from appliance.store.keys import KeyStore

LOG = logging.getLogger(__name__)

INFERENCE = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/rerank",
        "/v1/responses",
        "/v1/score",
    }
)
"""Paths that are forwarded, by POST, to an engine of the model that the body names."""

OPERATIONS = frozenset({"/health", "/ready", "/metrics"})
"""Paths for whoever runs the service; no key."""

TICK_S = 0.5
"""How often waiting and running requests are looked at: time limits, keep-alive comments, charges."""

SMALL_BODY = 64 * 1024
"""Bytes of a body on a path that wants none; it is not looked at."""


class Gateway:
    """The application for one site. Stores are opened and closed by the caller."""

    def __init__(
        self, site: Site, keys: KeyStore, usage: UsageWriter, control: EngineControl | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._site = site
        self._authenticator = Authenticator()
        self._keys = keys
        self._changes = -1
        self._running: set[Exchange] = set()
        self._take_keys(keys.snapshot(self._changes))
        self._usage = usage
        self.outbox = Outbox(self._loop)
        self.router = Router(site, self.outbox, self._notice)
        self._metrics = Metrics(self._samples)
        self._shared = Parts(
            site, self.router, Ledger(site.limits, site.users), usage, self._metrics, self._running, time.monotonic
        )
        self._tapes = Tapes(site.gateway.idempotency_s, self._loop.time)
        self.origins = BrowserOrigins(site.gateway.browser_origins)
        self._canaries = Canaries(self.router, site.gateway)
        self.swapper: SwapController | None = None
        if control is not None:
            self.swapper = SwapController(site, self.router, control, self._canaries, self._loop.time)
            self.swapper.start()
        self._cards = {name: _card(name, route.service.model) for name, route in self.router.routes.items()}
        self._prefix = os.urandom(6).hex()
        self._numbers = count(1)
        self._draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawn(self._poll_keys())
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    # What a connection calls.

    def begin(self, request: Request) -> int:
        """Know who asks before his body is read; the bytes it may have."""
        if request.path not in INFERENCE or request.method != "POST":
            return SMALL_BODY
        if self._draining:
            raise DrainingError("The gateway is stopping; try again shortly", retry_after=5)
        request.owner = self._authenticate(request)
        return self._site.gateway.max_body_bytes

    def broken_off(self, request: Request, error: RequestError | None) -> None:
        """A request whose body never came whole, or cannot be decoded, leaves a row too."""
        owner = request.owner
        if isinstance(owner, Key):
            row = UsageRow(time.time(), self._request_id(), owner.user, owner.id, request.path)
            row.status, row.outcome = (499, "aborted") if error is None else (error.status, "rejected")
            self._metrics.count(row)
            self._usage.put(row)

    def handle(self, request: Request, client: ClientConnection) -> None:
        """Answer a whole request, now or later."""
        path, method = request.path, request.method
        if method == "OPTIONS" and b"origin" in request.headers and _offered(path):
            # A preflight. It has no key, and needs no engine.
            client.answer(204, b"", headers=self.origins.preflight(request.headers))
        elif path in INFERENCE:
            _require(method, "POST", path)
            self._infer(request, client)
        elif path in OPERATIONS:
            _require(method, "GET", path)
            self._operations(path, client)
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            _require(method, "GET", path)
            self._list_models(path, self._authenticate(request), client)
        elif "%" in path:
            # What a proxy in front understood and what we understand must be the same path.
            raise NotFoundError("There is nothing at this path; write it without encoded characters")
        else:
            raise NotFoundError(f"There is nothing at {path[:100]}; GET /v1/models lists what is on offer")

    # What the server calls.

    def drain(self) -> None:
        """Take no new requests."""
        self._draining = True

    def stop(self) -> None:
        """The drain's deadline has come: end what still runs, and say so."""
        for exchange in [*self._running]:
            exchange.stop()

    def status(self) -> dict[str, object]:
        """What is loaded, what runs and what waits, as JSON."""
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
                    "state": "up" if replica.open else "down" if replica.resident else "not loaded",
                    "in_flight": replica.in_flight,
                    "slots": replica.slots,
                    "why": replica.breaker.why,
                }
                for replica in self.router.replicas
            },
            "on_demand": self.swapper.status() if self.swapper is not None else {},
            "draining": self._draining,
        }

    async def close(self) -> None:
        """Stop everything that runs beside requests."""
        if self.swapper is not None:
            await self.swapper.close()
        self._ticker.cancel()
        self._canaries.close()
        for task in self._tasks:
            task.cancel()
        self.router.close()

    # Inside.

    def _notice(self) -> None:
        if self.swapper is not None:
            self.swapper.notice()

    def _infer(self, request: Request, client: ClientConnection) -> None:
        # Once more: its body may have taken a minute, or it stood behind another one on its connection.
        owner = self._authenticate(request)
        try:
            request.body = decoded(
                request.body, request.headers.get(b"content-encoding"), self._site.gateway.max_body_bytes
            )
        except RequestError as error:
            self.broken_off(request, error)
            raise
        request_id = self._request_id()
        key = request.headers.get(b"idempotency-key")
        if key is None:
            exchange = Exchange(self._shared, owner, request, client, request_id)
            client.exchange = exchange
        else:
            tape = self._tapes.find(owner.id, key, request.path, request.body)
            if tape is not None:
                tape.follow(client)
                return
            tape = self._tapes.record(owner.id, key, request.path, request.body)
            tape.follow(client)
            exchange = Exchange(self._shared, owner, request, tape, request_id)
            tape.exchange = exchange
        exchange.begin(owner)

    def _request_id(self) -> str:
        return f"{self._prefix}{next(self._numbers):012x}"

    def _authenticate(self, request: Request) -> Key:
        headers = request.headers
        sent = headers.get(b"authorization")
        if sent is None and b"x-api-key" in headers:
            # How Anthropic's clients send it.
            sent = b"Bearer " + headers[b"x-api-key"]
        try:
            return self._authenticator.authenticate(sent)
        except AuthenticationError:
            self._metrics.unauthorized += 1
            raise

    def _operations(self, path: str, client: ClientConnection) -> None:
        if path == "/health":
            client.answer(200, b'{"status":"ok"}')
        elif path == "/metrics":
            client.answer(200, self._metrics.text(), reply.TEXT)
        elif self._draining:
            client.answer(503, b'{"status":"draining","engines":{}}')
        else:
            self._spawn(self._ready(client))

    async def _ready(self, client: ClientConnection) -> None:
        readiness = await self._canaries.check()
        body = {"status": "ready" if readiness.ready else "not ready", "engines": readiness.engines}
        client.answer(200 if readiness.ready else 503, json.dumps(body).encode())

    def _list_models(self, path: str, key: Key, client: ClientConnection) -> None:
        offered = {name: card for name, card in self._cards.items() if key.allows(name)}
        if path == "/v1/models":
            body: object = {"object": "list", "data": list(offered.values())}
        else:
            name = path.removeprefix("/v1/models/")
            if name not in offered:
                message = f"The model `{name[:80]}` does not exist; GET /v1/models lists what is on offer"
                raise NotFoundError(message, code="model_not_found", param="model")
            body = offered[name]
        client.answer(200, json.dumps(body).encode())

    def _tick(self) -> None:
        now = self._loop.time()
        for exchange in [*self._running]:
            exchange.tick(now)
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    def _take_keys(self, found: tuple[int, list[Key]] | None) -> None:
        if found is not None:
            self._changes = found[0]
            self._authenticator.replace(found[1])
            revoked = {key.id for key in found[1] if key.revoked_at is not None}
            for exchange in [exchange for exchange in self._running if exchange.line in revoked]:
                exchange.revoke()

    async def _poll_keys(self) -> None:
        complained = False
        while True:
            await asyncio.sleep(POLL_S)
            try:
                # In a thread: a database across a network must not hold up a stream.
                self._take_keys(await asyncio.to_thread(self._keys.snapshot, self._changes))
                complained = False
            except StoreError as error:
                if not complained:
                    # The last snapshot stays in force; a gateway that forgot all keys would serve nobody.
                    LOG.error("the keys cannot be read, changes to them wait until they can: %s", error)  # noqa: TRY400
                complained = True

    def _samples(self) -> Iterator[Sample]:
        replicas, services = self.router.replicas, self.router.services.values()
        yield Sample(
            "engine_up",
            "Whether the engine is loaded, and its last canary token came.",
            "engine",
            {replica.name: float(replica.open) for replica in replicas},
        )
        yield Sample(
            "engine_requests_in_flight",
            "Requests running on the engine; one for several answers counts as many times.",
            "engine",
            {replica.name: float(replica.in_flight) for replica in replicas},
        )
        yield Sample(
            "queue_length",
            "Requests waiting for a slot.",
            "model",
            {service.model: float(service.queue.waiting) for service in services},
        )
        if self.swapper is not None:
            yield Sample("swaps", "Models loaded on demand.", "", {"": float(self.swapper.swaps)}, counter=True)
            failures = {"": float(self.swapper.failures)}
            yield Sample("swap_failures", "Loads that failed.", "", failures, counter=True)
            yield Sample("last_swap_seconds", "How long the last one took.", "", {"": self.swapper.last_swap_s})
        yield Sample("usage_rows_dropped", "Usage rows lost to a full disk.", "", {"": float(self._usage.dropped)})

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _offered(path: str) -> bool:
    return path in INFERENCE or path in OPERATIONS or path == "/v1/models" or path.startswith("/v1/models/")


def _require(method: str, wanted: str, path: str) -> None:
    if method != wanted:
        raise MethodNotAllowedError(f"{path} takes {wanted}, not {method[:20]}")


def _card(name: str, model: str) -> dict[str, object]:
    card: dict[str, object] = {"id": name, "object": "model", "created": 0, "owned_by": "appliance"}
    if name != model:
        card["root"] = model
    return card
