"""The control socket: the gateway's status and its commands, for the owner of its data folder only.

HTTP/1.1 over a Unix socket with mode 0600. The admin API and the command line use it; no network reaches it.
"""

from __future__ import annotations

import json

import msgspec

from appliance.errors import ConflictError, InvalidRequestError, MethodNotAllowedError, NotFoundError, RequestError
from appliance.gateway import reply
from appliance.gateway.app import GatewayApp
from appliance.http1.types import ClientResponder, Request

SOCKET = "control.sock"
"""Name of the socket in the gateway's data folder."""

MAX_BODY = 4096
"""Largest body in bytes."""


class SwapRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /swap``."""

    model: str
    """A model or a role, by the name that clients use."""


_SWAP = msgspec.json.Decoder(SwapRequest)


class Control:
    """The application of the control socket."""

    def __init__(self, gateway: GatewayApp) -> None:
        self._gateway = gateway

    def begin(self, request: Request) -> int:  # noqa: ARG002 - the server's protocol
        """Return the size limit of the body in bytes."""
        return MAX_BODY

    def too_large(self, request: Request, error: RequestError) -> RequestError:  # noqa: ARG002 - the server's protocol
        """Return ``error``: the size is the only mistake that counts."""
        return error

    def record_incomplete(self, request: Request, error: object) -> None:
        """Ignore an incomplete request: the control socket records nothing."""

    def handle(self, request: Request, client: ClientResponder) -> None:
        """Respond to ``GET /status`` and ``POST /swap``; raises :class:`RequestError` for all else."""
        method = {"/status": "GET", "/swap": "POST"}.get(request.path)
        if method is None:
            raise NotFoundError("There is nothing at this path; use GET /status or POST /swap")
        if request.method != method:
            raise MethodNotAllowedError(f"{request.path} requires {method}")
        if method == "GET":
            client.respond(200, json.dumps(self._gateway.status()).encode())
            return
        try:
            swap_request = _SWAP.decode(request.body)
        except msgspec.DecodeError as error:
            raise InvalidRequestError(f'The body is not {{"model": …}}: {error}') from None
        model = self._gateway.router.named(swap_request.model).service.model
        if self._gateway.swap_controller is None:
            raise ConflictError(
                "No engine of this site is loaded on demand; there is nothing to swap", code="always_loaded"
            )
        self._gateway.swap_controller.request(model)
        client.respond(202, json.dumps({"model": model, "state": "requested"}).encode())

    def refuse(self, request: Request, error: RequestError, client: ClientResponder) -> None:
        """Respond with ``error`` in OpenAI's shape."""
        reply.respond_error(client, error, reply.api_path(request))

    def complete_headers(self, request: Request, headers: bytes) -> bytes:
        """Add the request's id."""
        return reply.complete_headers(request, headers)
