"""The control socket: what the gateway knows and what it may be told, for the owner of its data folder only.

HTTP/1.1 over a Unix socket with mode 0600. The admin API and the command line use it; no network reaches it.
"""

from __future__ import annotations

import json

import msgspec

from appliance.errors import ConflictError, InvalidRequestError, MethodNotAllowedError, NotFoundError, RequestError
from appliance.gateway.app import GatewayApp
from appliance.http1.connection import ClientConnection
from appliance.http1.types import Request

SOCKET = "control.sock"
"""Its name in the gateway's data folder."""

MAX_BODY = 4096


class SwapRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /swap``."""

    model: str
    """A model or a role, as clients name it."""


_SWAP = msgspec.json.Decoder(SwapRequest)


class Control:
    """The application behind the socket."""

    def __init__(self, gateway: GatewayApp) -> None:
        self._gateway = gateway

    def begin(self, request: Request) -> int:  # noqa: ARG002 - the server's protocol
        """Small bodies only."""
        return MAX_BODY

    def too_large(self, request: Request, error: RequestError) -> RequestError:  # noqa: ARG002 - the server's protocol
        """A body over the limit is just that."""
        return error

    def broken_off(self, request: Request, error: object) -> None:
        """Nothing is kept of it."""

    def handle(self, request: Request, client: ClientConnection) -> None:
        """``GET /status`` and ``POST /swap``."""
        method = {"/status": "GET", "/swap": "POST"}.get(request.path)
        if method is None:
            raise NotFoundError("There is nothing at this path; /status and /swap are what there is")
        if request.method != method:
            raise MethodNotAllowedError(f"{request.path} takes {method}")
        if method == "GET":
            client.answer(200, json.dumps(self._gateway.status()).encode())
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
        client.answer(202, json.dumps({"model": model, "state": "asked for"}).encode())
