"""The acting sockets: inference for the assistant, and all APIs of clients for the Telegram bot, for their users.

HTTP/1.1 over a Unix socket with mode 0660. The kernel names the account of each process that connects. The gateway
closes the connection, unless that is root, its own account or ``assistant.user``. No key of a client travels:

| header | value |
|---|---|
| ``x-appliance-key`` | the id of the key, from the request that the gateway passed on |
| ``x-appliance-user`` | its user, or the end user of its user; optional |
| ``x-appliance-background`` | ``1`` if no client waits: the weight times ``assistant.background_weight`` |
| ``x-request-id`` | the id of the client's request; the ids of the requests for it begin with it; optional |

Everything else is as for a client: the models and limits of the key, the fair queue, usage, revocation. Background
work has a flow of its own in the queue. No request of the assistant is passed on to the assistant.

``telegram.acting_socket`` is a socket of its own for ``telegram.user``. A request there is that of a client: also
the paths with state and ``/v1/models`` are served. A pause and a drain reject it, and it has no background.
Only this socket has the paths of :mod:`appliance.gateway.plan_sales`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import re
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Literal

from appliance.errors import MethodNotAllowedError, NotFoundError, RequestError, StartError
from appliance.gateway import paths, reply
from appliance.gateway.app import SMALL_BODY, GatewayApp
from appliance.gateway.plan_sales import SALE_METHODS, PlanSales
from appliance.http1.server import ClientConnection, Server
from appliance.http1.types import ClientResponder, Request, Timeouts
from appliance.system.unix_socket import address, peer_credentials

LOG = logging.getLogger(__name__)

MODE = 0o660

REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{1,28}")
"""Ids of clients' requests: with the number that follows, they fit the column of a usage row."""


def allowed_users(name: str | None, setting: str = "assistant.user") -> frozenset[int]:
    """Return the uids that may use the socket: the gateway's own, root's, and that of the account ``name``.

    Raises :class:`StartError`, which names the ``setting``, if the account does not exist.
    """
    users = {os.geteuid(), 0}
    if name is not None:
        try:
            users.add(pwd.getpwnam(name).pw_uid)
        except KeyError:
            raise StartError(
                f"{setting}: account {name!r} does not exist on this machine; create it, or remove the setting"
            ) from None
    return frozenset(users)


class ActingRequests:
    """The application of the acting socket."""

    def __init__(self, gateway: GatewayApp) -> None:
        self._gateway = gateway
        self._numbers = count(1)

    def begin(self, request: Request) -> int:
        """Authenticate before the body is read; return the body's size limit in bytes."""
        if request.path not in paths.INFERENCE or request.method != "POST":
            return SMALL_BODY
        sent = request.headers.get(b"x-request-id", b"")
        if REQUEST_ID.fullmatch(sent):
            # Several requests serve one of a client, and an engine rejects the id of a request that it has.
            request.id = f"{sent.decode()}.{next(self._numbers)}"
        background = request.headers.get(b"x-appliance-background") == b"1"
        return self._gateway.begin_acting(request, background=background)

    def too_large(self, request: Request, error: RequestError) -> RequestError:
        """Return the error of the path or the method, which takes precedence over ``error`` of the body's size."""
        return self._refusal(request) or error

    def record_incomplete(self, request: Request, error: RequestError | None) -> None:
        """Record a request whose body is incomplete (``error`` is ``None``) or was rejected with ``error``."""
        self._gateway.record_incomplete(request, error)

    def handle(self, request: Request, client: ClientResponder) -> None:
        """Respond to a complete request, now or later; raises :class:`RequestError` for a rejection."""
        refusal = self._refusal(request)
        if refusal is not None:
            raise refusal
        self._gateway.act(request, client)

    def refuse(self, request: Request, error: RequestError, client: ClientResponder) -> None:
        """Respond with ``error`` in OpenAI's shape."""
        reply.respond_error(client, error, paths.RESPONSES, reply.id_headers(request.id, paths.RESPONSES))

    def complete_headers(self, request: Request, headers: bytes) -> bytes:
        """Add the request's id."""
        return reply.complete_headers(request, headers)

    @staticmethod
    def _refusal(request: Request) -> RequestError | None:
        if request.path not in paths.INFERENCE:
            return NotFoundError("There is nothing at this path; the acting socket serves inference only")
        if request.method != "POST":
            return MethodNotAllowedError(f"{request.path} requires POST", allow=("POST",))
        return None


class LocalClientRequests(ActingRequests):
    """The application of the socket for a local client: the APIs of clients, with a key named by its id."""

    def __init__(self, gateway: GatewayApp, sales: PlanSales) -> None:
        super().__init__(gateway)
        self._sales = sales

    def begin(self, request: Request) -> int:
        """Authenticate before the body is read; return the body's size limit in bytes."""
        return SMALL_BODY if self._refusal(request) is not None else self._gateway.begin_named(request)

    def handle(self, request: Request, client: ClientResponder) -> None:
        """Respond to a complete request, now or later; raises :class:`RequestError` for a rejection."""
        refusal = self._refusal(request)
        if refusal is not None:
            raise refusal
        if request.path in SALE_METHODS:
            self._sales.handle(request, client)
        else:
            self._gateway.handle(request, client)

    @staticmethod
    def _refusal(request: Request) -> RequestError | None:
        path = request.path
        if path in SALE_METHODS:
            method = SALE_METHODS[path]
            if request.method == method:
                return None
            return MethodNotAllowedError(f"{path} requires {method}", allow=(method,))
        if path in paths.OPERATIONS or not (allow := paths.methods(path, stateful=True)):
            return NotFoundError("This path does not exist; the socket serves the APIs of clients")
        if request.method not in allow:
            return MethodNotAllowedError(f"{path[:100]} requires {allow[0]}", allow=allow)
        return None


class ActingSocket:
    """The socket at ``path`` for processes of the uids ``users``: the bot's with ``sales``, else the assistant's.

    Raises :class:`StartError` in :meth:`listen` if the socket cannot be made.
    """

    def __init__(
        self,
        gateway: GatewayApp,
        path: Path,
        users: Iterable[int],
        timeouts: Timeouts,
        sales: PlanSales | None = None,
    ) -> None:
        self._gateway = gateway
        self._section: Literal["assistant", "telegram"] = "assistant" if sales is None else "telegram"
        self._path = path
        self._users = frozenset(users)
        self._reported: set[int] = set()
        """Users whose refusal is logged already."""
        requests = ActingRequests(gateway) if sales is None else LocalClientRequests(gateway, sales)
        self._server = Server(requests, timeouts, gateway.coalescer)
        self._listener: asyncio.Server | None = None

    async def listen(self) -> None:
        """Accept connections."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with address(self._path) as name:
                self._listener = await asyncio.get_running_loop().create_unix_server(self._connect, name)
            self._path.chmod(MODE)
        except OSError as error:
            raise StartError(
                f"cannot listen on {self._path} ({error.strerror or error}); check {self._section}.acting_socket"
            ) from None

    async def drain(self) -> None:
        """Accept no further request, and wait until none runs."""
        if self._section == "assistant":
            self._gateway.drain_acting()
        self._server.drain()
        await self._server.drained()

    def close(self) -> None:
        """Close every connection and remove the socket."""
        if self._listener is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)
        self._server.close()

    def _connect(self) -> ActingConnection:
        return ActingConnection(self._server, self)

    def admits(self, descriptor: int) -> bool:
        """Return whether the process that connected ``descriptor`` may use the socket; count and log a refusal."""
        peer = peer_credentials(descriptor)
        if peer.uid in self._users:
            return True
        self._gateway.refused_peer()
        if peer.uid not in self._reported:
            self._reported.add(peer.uid)
            LOG.warning(
                "the user with uid %d may not use %s (pid %d); %s.user names the account that may",
                peer.uid,
                self._path,
                peer.pid,
                self._section,
            )
        return False


class ActingConnection(ClientConnection):
    """A connection to the acting socket; one of another user is closed before it is read."""

    __slots__ = ("_socket",)

    def __init__(self, server: Server, socket: ActingSocket) -> None:
        super().__init__(server)
        self._socket = socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Check the process at the other end, then start the header timeout."""
        super().connection_made(transport)
        if not self._socket.admits(transport.get_extra_info("socket").fileno()):
            self.abort()
