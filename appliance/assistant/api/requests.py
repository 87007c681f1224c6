"""The caller of a request, and each error as OpenAI's JSON: every endpoint needs both."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from appliance.assistant.caller import Caller, read_caller
from appliance.assistant.missing import not_found
from appliance.errors import (
    ApplianceError,
    InternalError,
    InvalidRequestError,
    RequestError,
    StoreError,
    openai_body,
)

__all__ = ["Calling", "add_error_handlers", "as_request_error", "not_found"]

LOG = logging.getLogger(__name__)


def _caller(request: Request) -> Caller:
    return read_caller(request.headers)


Calling = Annotated[Caller, Depends(_caller)]
"""The caller of a request, as a parameter of an endpoint."""


async def disconnected(request: Request) -> None:
    """Wait until the client of ``request``, whose body was read, disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def add_error_handlers(app: FastAPI) -> None:
    """Make ``app`` respond to each error in OpenAI's JSON."""
    for kind in (RequestError, ApplianceError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _as_response)
    app.add_exception_handler(ClientDisconnect, _unread)


async def _unread(_request: Request, _error: Exception) -> Response:
    """Return the response to a client that disconnected within its request: the log has nothing of it."""
    return Response(status_code=499)


async def _as_response(request: Request, error: Exception) -> Response:
    if type(error) is HTTPException:
        # Only the router raises it, before the body is read. A connection that ends with bytes unread is reset, and
        # the reset may overtake the response.
        async for _ in request.stream():
            pass
    rejection = as_request_error(error)
    if rejection.status >= 500 and not isinstance(error, RequestError):
        route = getattr(request.scope.get("route"), "path", "no endpoint")
        # The message of our own errors has place, cause and fix.
        unexpected = None if isinstance(error, ApplianceError) else error
        LOG.error("a request failed: %s %s: %s", request.method, route, type(error).__name__, exc_info=unexpected)
        if unexpected is None:
            LOG.error("%s", error)
    headers = dict(getattr(error, "headers", None) or {})
    if rejection.retry_after is not None:
        headers["Retry-After"] = str(round(rejection.retry_after))
    return Response(openai_body(rejection), rejection.status, headers, media_type="application/json")


def as_request_error(error: Exception) -> RequestError:
    """Return ``error`` as the error that a client gets; an unexpected one reveals nothing of itself."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return InvalidRequestError(f"{param}: {first['msg']}", param=param)
    if isinstance(error, HTTPException):
        refused = InvalidRequestError(str(error.detail), code="not_found" if error.status_code == 404 else None)
        refused.status = error.status_code
        return refused
    if isinstance(error, StoreError):
        rejection = RequestError(
            "The assistant cannot store this now; its log has the reason", code="storage_failed"
        )
        rejection.status = 503
        rejection.retry_after = 30
        return rejection
    return InternalError("The assistant failed on this request; its log has the reason")
