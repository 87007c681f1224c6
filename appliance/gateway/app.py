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
from pathlib import Path

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
from appliance.gateway.accounts import GatewayAccounts
from appliance.gateway.auth import POLL_S, Authenticator
from appliance.gateway.background import keep_going
from appliance.gateway.body_encoding import decoded, expanded
from appliance.gateway.breaker import CAUSES
from appliance.gateway.cors import METHODS, BrowserOrigins
from appliance.gateway.drains import DrainFile, Drains
from appliance.gateway.end_user import acting_caller, caller
from appliance.gateway.engine_keys import read_engine_keys
from appliance.gateway.greedy_record import GreedyRecord
from appliance.gateway.health import HealthMonitor
from appliance.gateway.idempotency import IdempotencyCache, RecordedResponse
from appliance.gateway.last_models import LastModels
from appliance.gateway.lifecycle import GatewayContext, ProxiedRequest, Running, error_outcome
from appliance.gateway.limits import Bucket, Ledger
from appliance.gateway.media_request import MediaRequest, check_media_head, reserve_form
from appliance.gateway.metrics import Metrics, MetricSample
from appliance.gateway.passing import AssistantRoute, PassedRequest
from appliance.gateway.routing import TASKS, Router, Service, served_paths
from appliance.gateway.session import VISITOR, BrowserSessions, require_same_origin
from appliance.gateway.session_request import read_login, respond_session, session_body
from appliance.gateway.session_secret import read_secret
from appliance.gateway.stateful import AssistantChats, is_stateful
from appliance.gateway.swap_controller import SwapController
from appliance.gateway.upload_memory import UploadMemory, UploadShare
from appliance.gateway.usage_writer import UsageWriter
from appliance.http1.types import ClientResponder, Request
from appliance.http1.writer import WriteCoalescer
from appliance.store.keys import KeyStore
from appliance.store.models import Account, Key, UsageRow
from appliance.store.users import UserStore

LOG = logging.getLogger(__name__)

TICK_S = 0.5
"""Seconds between checks of all waiting and running requests: deadlines, keep-alive comments, charges."""

SMALL_BODY = 64 * 1024
"""Largest body in bytes on a path that needs none; it is ignored."""

NOT_FOUND_LINES = 60
"""Log lines per minute about unknown paths: one misconfigured client requests the same path for ever."""


UPLOAD_FORM_BYTES = 2**20
"""Bytes of an upload in addition to its file: the other fields of the form, and its separators."""


class Authenticated:
    """The key of a request, authenticated before its body was read."""

    __slots__ = ("acting", "background", "generation", "key", "named", "upload")

    def __init__(
        self,
        key: Key,
        generation: int,
        *,
        acting: bool = False,
        background: bool = False,
        named: bool = False,
    ) -> None:
        self.key = key
        self.generation = generation
        """The authenticator's generation at that time."""
        self.acting = acting
        """Whether the assistant sent it for the key's user, on the acting socket."""
        self.background = background
        """Whether no client waits for it."""
        self.named = named
        """Whether a local client named the key by its id, on a socket of its own."""
        self.upload: UploadShare | None = None
        """The memory that is reserved for its body."""


class NamedKey:
    """The mark of a request whose local client names a key by its id: it sends no credential."""


NAMED = NamedKey()


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of the whole gateway: its ``reason``, and the seconds after which clients may retry."""

    reason: str
    retry_after_s: float

    def error(self) -> PausedError:
        """Return the error of a request during the pause."""
        return PausedError(f"The service is paused: {self.reason}", retry_after=self.retry_after_s)


class GatewayApp:
    """The application for one site. The caller opens and closes the stores; ``base`` is its working directory.

    Every method runs on the event loop's thread. :mod:`appliance.http1` calls ``begin``, then ``handle`` for a
    complete request, or ``too_large``, ``record_incomplete`` and ``refuse`` for a rejected one.
    """

    def __init__(
        self,
        site: Site,
        keys: KeyStore,
        users: UserStore,
        usage: UsageWriter,
        drain_file: DrainFile,
        control: EngineControl | None = None,
        *,
        base: Path = Path(),
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
        self.router = Router(site, self.coalescer, self._notice, read_engine_keys(site, base))
        self._inference = served_paths(self.router)
        self.drains = Drains(self.router, drain_file, self._notice)
        self._metrics = Metrics(self._samples)
        self._health = HealthMonitor(self.router, site.gateway)
        ledger = Ledger(site.plans.get(site.default_plan or "", site.limits), site.users)
        self.accounts = GatewayAccounts(site, users, usage, ledger)
        self._context = GatewayContext(
            site=site,
            router=self.router,
            ledger=ledger,
            accounts=self.accounts,
            usage=usage,
            metrics=self._metrics,
            running=self._running,
            clock=time.monotonic,
            suspect=self._health.suspect,
            last_models=LastModels(site.gateway.swap.preload_absent_s or 0.0),
        )
        assistant = site.assistant
        self._assistant: AssistantRoute | None = None
        self._sessions: BrowserSessions | None = None
        """The sessions of the chat page; a site without an assistant has no page."""
        if assistant is not None:
            self._assistant = AssistantRoute(self._context, assistant.socket_path(base))
            self._sessions = BrowserSessions(read_secret(site.data_path(base)), self._authenticator)
        self._max_upload = (assistant.max_file_bytes if assistant is not None else 0) + UPLOAD_FORM_BYTES
        self._background_weight = assistant.background_weight if assistant is not None else 1.0
        self._uploads = UploadMemory()
        self._assistant_chats = AssistantChats(site)
        self._refused_peers = 0
        self._closed = False
        """Whether the gateway is stopping and no client waits for an acting request."""
        self._idempotency = IdempotencyCache(site.gateway.idempotency_s, self._loop.time)
        self._origins = BrowserOrigins(site.gateway.browser_origins)
        self._browsers = self._origins.named
        """Whether any origin is allowed: without one, no request is examined for it."""
        self.swap_controller: SwapController | None = None
        if control is not None:
            self.swap_controller = SwapController(
                site=site,
                router=self.router,
                control=control,
                health=self._health,
                clock=self._loop.time,
                greedy_record=GreedyRecord(site.data_path(base)),
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
        self._spawn(keep_going("following the budgets", self.accounts.step))
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    # Called by a connection.

    def begin(self, request: Request) -> int:
        """Authenticate before the body is read; return the body's size limit in bytes."""
        if request.path not in self._inference or request.method != "POST":
            return self._begin_passed(request) if self._is_passed(request) else SMALL_BODY
        if self._draining:
            raise DrainingError("The gateway is stopping; try again shortly", retry_after=5)
        request.context = known = self._identified(request)
        if self._pause is not None:
            raise self._pause.error()
        return self._inference_limit(request, known)

    def too_large(self, request: Request, error: RequestError) -> RequestError:
        """Return the error of the path or the method, which takes precedence over ``error`` of the body's size."""
        return self._refusal(request) or error

    def record_incomplete(self, request: Request, error: RequestError | None) -> None:
        """Record a request whose body is incomplete (``error`` is ``None``) or was rejected with ``error``."""
        known = request.context
        if isinstance(known, Authenticated):
            owner = known.key
            if known.upload is not None:
                known.upload.release()
            row = UsageRow(
                started_at=time.time(),
                request_id=request.id,
                user=owner.user,
                key_id=owner.id,
                # Not the path: it has ids, and the labels of metrics must be few.
                endpoint=paths.stateful_group(request.path) or request.path,
            )
            row.status, row.outcome = (499, "aborted") if error is None else (error.status, error_outcome(error))
            self._metrics.count(row)
            self._usage.put(row)

    def handle(self, request: Request, client: ClientResponder) -> None:
        """Respond to a complete request, now or later; raises :class:`RequestError` for a rejection."""
        path = request.path
        if path in self._inference and request.method == "POST":
            self._infer(request, client)
            return
        if self._is_passed(request):
            self._pass(request, client)
            return
        refusal = self._refusal(request)
        if refusal is not None:
            raise refusal
        if request.method == "OPTIONS":
            # A preflight has no key and needs no engine.
            allow = b"allow: %s\r\n" % ", ".join(self._methods(path)).encode()
            methods = self._methods(path) if self._assistant is not None else METHODS
            preflight = self._origins.preflight(request.headers, methods) if b"origin" in request.headers else b""
            client.respond(204, b"", headers=allow + preflight)
        elif path in paths.OPERATIONS:
            self._operations(path, client)
        elif path == paths.USAGE:
            report = self.accounts.report(self._authenticate(request))
            client.respond(200, json.dumps(report).encode(), headers=b"cache-control: no-store\r\n")
        elif path == paths.SESSION:
            self._session(request, client)
        elif paths.is_page(path):
            self._visit(request, client)
        else:
            self._list_models(path, self._authenticate(request), client)

    def refuse(self, request: Request, error: RequestError, client: ClientResponder) -> None:
        """Respond with ``error`` in the shape of the API that the client uses."""
        reply.respond_error(client, error, reply.api_path(request))

    def complete_headers(self, request: Request, headers: bytes) -> bytes:
        """Add the request's id, the budget of its user, and the CORS lines for pages of other origins."""
        known = request.context
        if self._site.plans and isinstance(known, Authenticated):
            headers += self.accounts.header(known.key)
        if self._browsers:
            headers += self._origins.headers(request.headers.get(b"origin"))
        elif headers.startswith(reply.ID):
            return headers
        return reply.complete_headers(request, headers)

    # Called by the acting socket.

    def begin_acting(self, request: Request, *, background: bool) -> int:
        """Authenticate a request of the assistant by the id of its user's key; return the body's limit in bytes.

        While the gateway drains or is paused, a running turn may send further requests; background work may not.
        """
        if self._closed or (self._draining and background):
            raise DrainingError("The gateway is stopping; try again shortly", retry_after=5)
        key, generation = self._acting_key(request), self._authenticator.generation
        request.context = known = Authenticated(key, generation, acting=True, background=background)
        if self._pause is not None and background:
            raise self._pause.error()
        return self._inference_limit(request, known)

    def act(self, request: Request, client: ClientResponder) -> None:
        """Respond to a complete inference request of the assistant, now or later."""
        self._infer(request, client)

    def begin_named(self, request: Request) -> int:
        """Authenticate a request of a local client by the id of a key; return the body's size limit in bytes.

        Everything else is as for a client with that key, also while the gateway drains or is paused.
        """
        request.context = NAMED
        return self.begin(request)

    def named_key(self, request: Request) -> Key:
        """Return the valid key that a local client names by its id; raises :class:`RequestError`."""
        return self._acting_key(request)

    def refused_peer(self) -> None:
        """Count a process that may not use the acting socket."""
        self._refused_peers += 1

    def drain_acting(self) -> None:
        """Accept no new requests of the assistant either: the last client has its response."""
        self._closed = True

    # Called by `main` and by the control socket.

    def drain(self) -> None:
        """Accept no new requests of clients; those that run continue, and so do the turns of the assistant."""
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
            "last_swap": self.swap_controller.last_swap() if self.swap_controller is not None else None,
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

    def _appeared(self, user: str) -> None:
        """Expect requests for the model that ``user`` used last, if the user was absent."""
        swaps = self.swap_controller
        if swaps is None or self._site.gateway.swap.preload_absent_s is None:
            return
        model = self._context.last_models.appeared(user, self._context.clock())
        if model is not None:
            swaps.expect(model)

    def _notice(self) -> None:
        if self.swap_controller is not None:
            self.swap_controller.notice()

    def _inference_limit(self, request: Request, known: Authenticated) -> int:
        """Return the size limit of the body of an inference request in bytes; reserve memory for a form."""
        settings = self._site.gateway
        if request.path in paths.MEDIA:
            check_media_head(request)
            if request.path in paths.FORMS:
                known.upload, limit = reserve_form(request, self._uploads, settings.max_audio_bytes)
                return limit
        return settings.max_body_bytes

    def _infer(self, request: Request, client: ClientResponder) -> None:
        known, limit = request.context, self._site.gateway.max_body_bytes
        acting, background = False, None
        if isinstance(known, Authenticated) and known.acting:
            acting, background = True, self._background_weight if known.background else None
        try:
            if self._pause is not None and (not acting or background is not None):
                # The pause began while the body arrived.
                raise self._pause.error()
            if request.path not in paths.FORMS:
                request.body = decoded(request.body, request.headers.get(b"content-encoding"), limit)
        except RequestError as error:
            self.record_incomplete(request, error)
            raise
        owner = self._owner(request)
        if self._assistant is not None and not acting and self._needs_assistant(request):
            self._forward(self._assistant, request, client, owner, endpoint=request.path)
            return
        key = request.headers.get(b"idempotency-key")
        if request.path in paths.MEDIA:
            self._serve_media(request, client, owner, background=background)
        elif key is None:
            proxied = ProxiedRequest(
                self._context, owner, request, client, background_weight=background, acting=acting
            )
            client.listener = proxied
            proxied.begin(owner)
        else:
            recording = self._recorded(request, client, owner, key)
            if recording is None:
                return
            proxied = ProxiedRequest(self._context, owner, request, recording, background_weight=background)
            recording.request = proxied
            proxied.begin(owner)

    def _serve_media(
        self, request: Request, client: ClientResponder, owner: Key, *, background: float | None
    ) -> None:
        """Serve audio or images. A form has no Idempotency-Key: a retry has another boundary."""
        known = request.context
        upload = known.upload if isinstance(known, Authenticated) else None
        key = request.headers.get(b"idempotency-key") if upload is None else None
        if key is None:
            if upload is not None:
                upload.shrink(len(request.body))
            media = MediaRequest(self._context, owner, request, client, background_weight=background, upload=upload)
            client.listener = media
        else:
            recording = self._recorded(request, client, owner, key)
            if recording is None:
                return
            media = MediaRequest(self._context, owner, request, recording, background_weight=background)
            recording.request = media
        media.begin(owner)

    def _owner(self, request: Request) -> Key:
        """Return the key of a complete request."""
        known = request.context
        if isinstance(known, Authenticated) and known.generation == self._authenticator.generation:
            owner = known.key
            if owner.expires_at is None and not owner.end_users:
                return owner
        # Again: keys may have changed while the body arrived, or while the request waited on its connection.
        if isinstance(known, Authenticated) and (known.acting or known.named):
            return self._acting_key(request)
        return self._authenticate(request)

    def _identified(self, request: Request) -> Authenticated:
        """Return the key of a request before its body is read."""
        named = request.context is NAMED
        return Authenticated(self._authenticate(request), self._authenticator.generation, named=named)

    def _recorded(
        self, request: Request, client: ClientResponder, owner: Key, key: bytes
    ) -> RecordedResponse | None:
        """Return a new recording for an Idempotency-Key; ``None`` if the ``client`` reads an earlier one."""
        recording = self._idempotency.find(owner.scope, key, path=request.path, body=request.body)
        if recording is not None:
            recording.follow(client)
            return None
        recording = self._idempotency.record(owner.scope, key, path=request.path, body=request.body)
        recording.follow(client)
        return recording

    # The assistant.

    def _is_passed(self, request: Request) -> bool:
        """Return whether the assistant serves the request's path, with this method."""
        return (
            self._assistant is not None
            and request.method != "OPTIONS"
            and request.method in paths.PASS
            and bool(paths.stateful_group(request.path))
        )

    def _needs_assistant(self, request: Request) -> bool:
        """Return whether an inference request has state, or a memory or web search."""
        if request.path == paths.RESPONSES:
            return is_stateful(request.body) or self._assistant_chats.includes_response(request.body)
        return request.path == "/v1/chat/completions" and self._assistant_chats.includes_chat(request.body)

    def _begin_passed(self, request: Request) -> int:
        """Authenticate before the body is read; return the body's size limit in bytes."""
        if self._draining:
            raise DrainingError("The gateway is stopping; try again shortly", retry_after=5)
        request.context = known = self._identified(request)
        if request.method in paths.READ or (request.method == "DELETE" and not paths.is_item(request.path)):
            # A pause concerns new work. Stored objects can be read and deleted. An item is deleted to repeat its
            # turn, which a pause rejects, so the item stays.
            return SMALL_BODY
        if self._pause is not None:
            raise self._pause.error()
        if request.path != paths.UPLOADS:
            return self._site.gateway.max_body_bytes
        length = request.headers.get(b"content-length")
        plain = length is not None and b"content-encoding" not in request.headers
        known.upload = self._uploads.reserve(
            min(int(length), self._max_upload) if plain and length is not None else self._max_upload
        )
        return self._max_upload

    def _pass(self, request: Request, client: ClientResponder) -> None:
        """Pass a complete request to the assistant."""
        assistant, known = self._assistant, request.context
        if assistant is None:
            return
        upload = known.upload if isinstance(known, Authenticated) else None
        coding = request.headers.get(b"content-encoding")
        limit = self._site.gateway.max_body_bytes
        try:
            if self._pause is not None and request.method not in (*paths.READ, "DELETE"):
                raise self._pause.error()
            if upload is not None:
                if coding is None:
                    upload.shrink(len(request.body))
            elif b"json" in request.headers.get(b"content-type", b""):
                request.body = decoded(request.body, coding, limit)
            elif coding is not None:
                request.body = expanded(request.body, coding, limit)
        except RequestError as error:
            self.record_incomplete(request, error)
            raise
        owner = self._owner(request)
        endpoint = paths.stateful_group(request.path)
        self._forward(assistant, request, client, owner, endpoint=endpoint, upload=upload)

    def _forward(
        self,
        assistant: AssistantRoute,
        request: Request,
        client: ClientResponder,
        owner: Key,
        *,
        endpoint: str,
        upload: UploadShare | None = None,
    ) -> None:
        share = (upload, self._max_upload) if upload is not None else None
        key = request.headers.get(b"idempotency-key") if request.method == "POST" and upload is None else None
        if key is None:
            passed = PassedRequest(assistant, owner, request, client, endpoint=endpoint, upload=share)
            client.listener = passed
        else:
            # An upload has none: a client repeats it with another separator between the fields of the form.
            recording = self._recorded(request, client, owner, key)
            if recording is None:
                return
            passed = PassedRequest(assistant, owner, request, recording, endpoint=endpoint)
            recording.request = passed
        passed.begin(owner)

    # The chat page.

    def _session_key(self, request: Request) -> Key | None:
        """Return the key of the browser's session; ``None`` if the request has a key of its own, or no cookie."""
        if self._sessions is None or b"cookie" not in request.headers:
            return None
        return self._sessions.authenticate(request.method, request.headers)

    def _session(self, request: Request, client: ClientResponder) -> None:
        """Log a browser in or out, or return its session."""
        sessions = self._sessions
        if sessions is None:
            return
        headers = request.headers
        if request.method in paths.READ:
            key = self._authenticate(request)
            self._appeared(key.user)
            respond_session(request, client, session_body(key))
            return
        require_same_origin(request.method, headers)
        if request.method == "DELETE":
            respond_session(request, client, None, sessions.close(headers))
            return
        try:
            key, expiry, cookie = sessions.open(read_login(request), headers)
        except AuthenticationError as error:
            self._metrics.unauthorized += 1
            respond_session(request, client, error)
        else:
            respond_session(request, client, session_body(key, expiry), cookie)

    def _visit(self, request: Request, client: ClientResponder) -> None:
        """Pass a request for the page to the assistant, as the key of its session or as a visitor."""
        assistant, sessions = self._assistant, self._sessions
        if assistant is None or sessions is None:
            return
        if self._draining:
            raise DrainingError("The gateway is stopping; try again shortly", retry_after=5)
        try:
            owner = sessions.key_of(request.headers) or VISITOR
        except AuthenticationError:
            owner = VISITOR
        self._forward(assistant, request, client, owner, endpoint=paths.PAGE)

    def _acting_key(self, request: Request) -> Key:
        """Return the key that a request on the acting socket names, as its user has it."""
        headers = request.headers
        return acting_caller(
            self._authenticator.by_id(headers.get(b"x-appliance-key")), headers.get(b"x-appliance-user")
        )

    def _methods(self, path: str) -> tuple[str, ...]:
        if path in paths.MEDIA and path not in self._inference:
            return ()
        return paths.methods(path, stateful=self._assistant is not None)

    def _refusal(self, request: Request) -> RequestError | None:
        """Return the error of the request's path or method, if any; count and log unknown paths."""
        path, method = request.path, request.method
        allow = self._methods(path)
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
        suggestion = paths.suggestion(path, stateful=self._assistant is not None)
        if path in paths.MEDIA:
            suggestion = f"this service has no model with the task {TASKS[path]}"
        suggestion = suggestion or "GET /v1/models lists the models, docs/gateway.md the endpoints"
        return NotFoundError(f"There is nothing at {path[:100]}; {suggestion}")

    def _authenticate(self, request: Request) -> Key:
        """Return the key of the first valid credential, for the end user that the request names."""
        if request.context is NAMED:
            return self._acting_key(request)
        try:
            key = self._session_key(request) or self._authenticator.authenticate_any(request.headers)
        except AuthenticationError:
            self._metrics.unauthorized += 1
            raise
        if not key.end_users:
            return key
        # An upload names its end user in a header: its body is a form, and may be large.
        form = request.path == paths.UPLOADS or request.path in paths.FORMS
        return caller(key, request.headers, b"" if form else request.body)

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
        self._appeared(key.user)
        offered = {name: card for name, card in self._model_cards.items() if self.accounts.allows(key, name)}
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

    def _read_changes(self) -> tuple[tuple[int, list[Key]] | None, tuple[int, list[Account]] | None]:
        """Read the keys, then the users: so the user of each key, and its plan, are known with it."""
        keys = self._keys.snapshot(self._changes)
        return keys, self.accounts.changes()

    async def _poll_keys(self) -> None:
        await asyncio.sleep(POLL_S)
        try:
            # In a thread: a database behind a network must not block a stream.
            keys, users = await asyncio.to_thread(self._read_changes)
            self.accounts.take(users)
            self._take_keys(keys)
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
        if self._site.plans:
            yield MetricSample(
                "budget_used_ratio",
                "Used share of the user's budget of the day or month, whichever is larger; the largest ones only.",
                self.accounts.used_ratios(),
                ("user",),
            )
            yield MetricSample(
                "budget_notice_timestamp_seconds",
                "When a user reached 80 or 100 percent of its budget of a period; only the last hours.",
                self.accounts.notice_times(),
                ("user", "period", "percent"),
            )
        swaps = self.swap_controller
        if swaps is not None:
            yield MetricSample("swaps", "Models loaded on demand.", {(): swaps.swaps}, counter=True)
            yield MetricSample("swap_failures", "Loads that failed.", {(): swaps.failures}, counter=True)
            yield MetricSample("last_swap_seconds", "Seconds that the last load took.", {(): swaps.last_swap_s})
        if self._assistant is not None:
            yield MetricSample(
                "passed_in_flight",
                "Requests that the assistant is serving.",
                {(): float(self._assistant.in_flight)},
            )
            yield MetricSample(
                "acting_refused",
                "Connections to the acting socket by processes that may not use it.",
                {(): float(self._refused_peers)},
                counter=True,
            )
        yield MetricSample("upload_bytes", "Memory reserved for uploads of files.", {(): float(self._uploads.used)})
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
