"""The control socket: the gateway's status and its commands, for the owner of its data folder only.

HTTP/1.1 over a Unix socket with mode 0600. The admin API, the command line and the watchers use it; no network
reaches it.

| request | body | effect |
|---|---|---|
| ``GET /status`` | | models, engines, drains, the pause and requests in flight |
| ``POST /swap`` | ``{"model"}`` | load a model on demand now |
| ``POST /drain`` | ``{"replica", "reason"}`` | no new request for a replica, also after a restart |
| ``POST /undrain`` | ``{"replica"}`` | end that |
| ``POST /pause`` | ``{"reason", "retry_after_s"}`` | reject new and waiting requests, until a restart |
| ``POST /resume`` | ``{}`` | end that |

Each command may be repeated: the second call changes nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable
from typing import Annotated, TypeVar

import msgspec

from appliance.errors import (
    ConflictError,
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
)
from appliance.gateway import reply
from appliance.gateway.app import GatewayApp
from appliance.http1.types import ClientResponder, Request

LOG = logging.getLogger(__name__)

SOCKET = "control.sock"
"""Name of the socket in the gateway's data folder."""

MAX_BODY = 4096
"""Largest body in bytes."""

Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""One line for operators and clients: a client sees it in its 503."""


class SwapRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /swap``."""

    model: str
    """A model or a role, by the name that clients use."""


class DrainRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /drain``."""

    replica: str
    """A replica as the status names it: the engine, or ``engine.1`` if it has several."""
    reason: Reason


class UndrainRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /undrain``."""

    replica: str


class PauseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /pause``."""

    reason: Reason
    retry_after_s: Annotated[float, msgspec.Meta(ge=1, le=86400)]
    """The ``Retry-After`` of the rejected requests, in seconds."""


class ResumeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /resume``."""


COMMANDS: dict[str, type[msgspec.Struct]] = {
    "/swap": SwapRequest,
    "/drain": DrainRequest,
    "/undrain": UndrainRequest,
    "/pause": PauseRequest,
    "/resume": ResumeRequest,
}
"""The body of each command, which is a POST."""

Body = TypeVar("Body", bound=msgspec.Struct)


class Control:
    """The application of the control socket."""

    def __init__(self, gateway: GatewayApp) -> None:
        self._gateway = gateway
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, request: Request) -> int:  # noqa: ARG002 - the server's protocol
        """Return the size limit of the body in bytes."""
        return MAX_BODY

    def too_large(self, request: Request, error: RequestError) -> RequestError:  # noqa: ARG002 - the server's protocol
        """Return ``error``: the size is the only mistake that counts."""
        return error

    def record_incomplete(self, request: Request, error: object) -> None:
        """Ignore an incomplete request: the control socket records nothing."""

    def handle(self, request: Request, client: ClientResponder) -> None:
        """Respond to the status and the commands, now or later; raises :class:`RequestError` for all else."""
        path = request.path
        if path != "/status" and path not in COMMANDS:
            raise NotFoundError(f"There is nothing at this path; use GET /status or POST {', '.join(COMMANDS)}")
        method = "POST" if path in COMMANDS else "GET"
        if request.method != method:
            raise MethodNotAllowedError(f"{path} requires {method}", allow=(method,))
        gateway = self._gateway
        if path == "/status":
            _respond(client, gateway.status())
        elif path == "/swap":
            self._swap(_decode(request.body, SwapRequest), client)
        elif path == "/drain":
            drain = _decode(request.body, DrainRequest)
            self._finish(request, client, drain.replica, gateway.drains.drain(drain.replica, drain.reason))
        elif path == "/undrain":
            undrain = _decode(request.body, UndrainRequest)
            self._finish(request, client, undrain.replica, gateway.drains.undrain(undrain.replica))
        elif path == "/pause":
            pause = _decode(request.body, PauseRequest)
            gateway.pause(pause.reason, pause.retry_after_s)
            _respond(client, gateway.pause_status())
        else:
            _decode(request.body, ResumeRequest)
            gateway.resume()
            _respond(client, gateway.pause_status())

    def refuse(self, request: Request, error: RequestError, client: ClientResponder) -> None:
        """Respond with ``error`` in OpenAI's shape."""
        reply.respond_error(client, error, reply.api_path(request))

    def complete_headers(self, request: Request, headers: bytes) -> bytes:
        """Add the request's id."""
        return reply.complete_headers(request, headers)

    def _swap(self, swap: SwapRequest, client: ClientResponder) -> None:
        model = self._gateway.router.named(swap.model).service.model
        if self._gateway.swap_controller is None:
            raise ConflictError(
                "No engine of this site is loaded on demand; there is nothing to swap", code="always_loaded"
            )
        self._gateway.swap_controller.request(model)
        _respond(client, {"model": model, "state": "requested"}, 202)

    def _finish(self, request: Request, client: ClientResponder, replica: str, change: Awaitable[bool]) -> None:
        """Respond once ``change`` of the drain of ``replica`` is in effect and in the file."""

        async def respond() -> None:
            try:
                saved = await change
                _respond(client, {"replica": replica, **self._gateway.drains.status(replica), "saved": saved})
            except RequestError as error:
                self.refuse(request, error, client)
            except Exception:
                # Nothing awaits this task: without a response here, the caller would wait for its timeout.
                LOG.exception("%s failed", request.path)
                self.refuse(request, InternalError("The gateway failed; its log has the reason"), client)

        task = asyncio.get_running_loop().create_task(respond())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _decode(body: bytes, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        fields = ", ".join(f'"{name}": …' for name in kind.__struct_fields__)
        raise InvalidRequestError(f"The body is not {{{fields}}}: {error}") from None


def _respond(client: ClientResponder, body: object, status: int = 200) -> None:
    client.respond(status, json.dumps(body).encode())
