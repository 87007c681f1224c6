"""The gateway's ASGI application: what is on offer, who may, and the way of a request.

Raw ASGI, no framework: the data plane pays for what it does and nothing else. Every path that is not in
:data:`INFERENCE` or among the few GETs is 404, so an engine's control paths cannot be reached however they
are spelled.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3

from appliance.config import Site
from appliance.errors import (
    AuthenticationError,
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
)
from appliance.gateway.exchange import Client, Exchange
from appliance.gateway.keys import POLL_S, Authenticator, Key, KeyStore
from appliance.gateway.limits import Ledger
from appliance.gateway.metrics import Metrics
from appliance.gateway.ready import ReadyCheck
from appliance.gateway.respond import Receive, Scope, Send, answer, answer_error
from appliance.gateway.route import Router
from appliance.gateway.usage import UsageWriter

LOG = logging.getLogger(__name__)

INFERENCE = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"})
"""Paths that are forwarded, by POST, to an engine of the model that the body names."""


class Gateway:
    """The application for one site. Stores are opened by the lifespan's caller and closed by it."""

    def __init__(self, site: Site, keys: KeyStore, usage: UsageWriter) -> None:
        self._site = site
        self._authenticator = Authenticator(keys)
        self._usage = usage
        self._router = Router(site)
        self._ledger = Ledger(site.limits, site.users)
        self._metrics = Metrics()
        self._ready: ReadyCheck | None = None
        self._poll: asyncio.Task[None] | None = None
        self._models = {name: _card(name, route.model) for name, route in self._router.routes.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection: HTTP or the lifespan; there are no WebSockets here."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._ready = ReadyCheck(self._router.targets, self._site.gateway.ready_cache_s, self._metrics)
                self._poll = asyncio.create_task(self._poll_keys())
                await send({"type": "lifespan.startup.complete"})
            else:
                if self._poll is not None:
                    self._poll.cancel()
                self._router.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _poll_keys(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                self._authenticator.refresh()
            except sqlite3.Error:
                # The last snapshot stays in force; a gateway that forgot all keys would serve nobody.
                LOG.exception("the keys cannot be read; changes to them wait until they can")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        method: str = scope["method"]
        try:
            # What a proxy in front understood and what we decoded must be the same path.
            if scope["raw_path"] != path.encode():
                raise NotFoundError("There is nothing at this path; write it without encoded characters")
            if path in INFERENCE:
                _require(method, "POST", path)
                await self._infer(scope, receive, send, path)
            elif path in ("/health", "/ready", "/metrics"):
                _require(method, "GET", path)
                await self._operations(path, send)
            elif path == "/v1/models" or path.startswith("/v1/models/"):
                _require(method, "GET", path)
                self._authenticate(scope)
                await self._list_models(path, send)
            else:
                raise NotFoundError(f"There is nothing at {path[:100]}; GET /v1/models lists what is on offer")
        except RequestError as error:
            await answer_error(send, error)

    def _authenticate(self, scope: Scope) -> Key:
        try:
            return self._authenticator.authenticate(scope["headers"])
        except AuthenticationError:
            self._metrics.unauthorized.inc()
            raise

    async def _operations(self, path: str, send: Send) -> None:
        if path == "/health":
            await answer(send, 200, b'{"status":"ok"}')
        elif path == "/metrics":
            self._metrics.rows_dropped.set(self._usage.dropped)
            await answer(send, 200, self._metrics.text(), b"text/plain; version=0.0.4; charset=utf-8")
        elif self._ready is not None:
            readiness = await self._ready.check()
            body = {"status": "ready" if readiness.ready else "not ready", "engines": readiness.engines}
            await answer(send, 200 if readiness.ready else 503, json.dumps(body).encode())

    async def _list_models(self, path: str, send: Send) -> None:
        if path == "/v1/models":
            body: object = {"object": "list", "data": list(self._models.values())}
        else:
            name = path.removeprefix("/v1/models/")
            if name not in self._models:
                message = f"The model `{name[:80]}` does not exist; GET /v1/models lists what is on offer"
                raise NotFoundError(message, code="model_not_found", param="model")
            body = self._models[name]
        await answer(send, 200, json.dumps(body).encode())

    async def _infer(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        key = self._authenticate(scope)
        exchange = Exchange(
            key,
            path,
            Client(receive, send),
            router=self._router,
            ledger=self._ledger,
            usage=self._usage,
            metrics=self._metrics,
        )
        await exchange.run(scope["headers"], self._site.gateway.max_body_bytes)


def _require(method: str, wanted: str, path: str) -> None:
    if method != wanted:
        raise MethodNotAllowedError(f"{path} takes {wanted}, not {method[:20]}")


def _card(name: str, model: str) -> dict[str, object]:
    card: dict[str, object] = {"id": name, "object": "model", "created": 0, "owned_by": "appliance"}
    if name != model:
        card["root"] = model
    return card
