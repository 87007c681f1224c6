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

import json
from collections.abc import Awaitable
from typing import Annotated

import msgspec

from appliance.errors import (
    ConflictError,
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
)
from appliance.gateway import reply
from appliance.gateway.app import GatewayApp
from appliance.gateway.late_response import LateResponses, decode_fields
from appliance.http1.types import ClientResponder, Request

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


class Control:
    """The application of the control socket."""

    def __init__(self, gateway: GatewayApp) -> None:
        self._gateway = gateway
        self._late = LateResponses()

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
            self._swap(decode_fields(request.body, SwapRequest), client)
        elif path == "/drain":
            drain = decode_fields(request.body, DrainRequest)
            change = gateway.drains.drain(drain.replica, drain.reason)
            self._late.start(request, client, self._drained(drain.replica, change))
        elif path == "/undrain":
            undrain = decode_fields(request.body, UndrainRequest)
            change = gateway.drains.undrain(undrain.replica)
            self._late.start(request, client, self._drained(undrain.replica, change))
        elif path == "/pause":
            pause = decode_fields(request.body, PauseRequest)
            gateway.pause(pause.reason, pause.retry_after_s)
            _respond(client, gateway.pause_status())
        else:
            decode_fields(request.body, ResumeRequest)
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

    async def _drained(self, replica: str, change: Awaitable[bool]) -> dict[str, object]:
        """Return the state of the drain of ``replica`` once ``change`` is in effect and in the file."""
        saved = await change
        return {"replica": replica, **self._gateway.drains.status(replica), "saved": saved}


def _respond(client: ClientResponder, body: object, status: int = 200) -> None:
    client.respond(status, json.dumps(body).encode())
