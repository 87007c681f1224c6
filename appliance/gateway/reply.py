"""Headers and errors of responses, in the shapes that OpenAI's and Anthropic's clients read."""

from __future__ import annotations

import json
import math

from appliance.errors import BudgetError, EngineReportedError, MethodNotAllowedError, RequestError, openai_body
from appliance.gateway.engine_error import EngineError
from appliance.http1.types import JSON, Request, Responder

TEXT = b"text/plain; version=0.0.4; charset=utf-8"

ID = b"x-request-id: "
"""First bytes of the lines that name a request."""


def id_headers(request_id: str, path: str) -> bytes:
    """Return the header lines that name a request; Anthropic's SDKs read ``request-id``."""
    known = request_id.encode()
    if path.startswith(_ANTHROPICS):
        return b"x-request-id: %s\r\nrequest-id: %s\r\n" % (known, known)
    return b"x-request-id: %s\r\n" % known


def complete_headers(request: Request, headers: bytes) -> bytes:
    """Return ``headers`` with the lines that name the request, unless they begin with those."""
    if headers.startswith(ID):
        return headers
    return id_headers(request.id, api_path(request)) + headers


def api_path(request: Request) -> str:
    """Return the path whose API gives the shape of errors: Anthropic's SDKs request the list of models, too."""
    return _ANTHROPICS if b"anthropic-version" in request.headers else request.path


def respond_error(client: Responder, error: RequestError, path: str, headers: bytes = b"") -> None:
    """Respond with ``error`` in the shape that the clients of ``path`` read."""
    client.respond(error.status, error_body(error, path), JSON, headers + error_headers(error))


def error_headers(error: RequestError) -> bytes:
    """Return the header lines of an error: ``Retry-After``, ``WWW-Authenticate`` with 401, ``Allow`` with 405."""
    found = b""
    if error.retry_after is not None:
        found += b"retry-after: %d\r\n" % max(1, math.ceil(error.retry_after))
    if error.code == BudgetError.code:
        # OpenAI's SDKs retry a 429 by default.
        found += b"x-should-retry: false\r\n"
    if error.status == 401:
        found += b"www-authenticate: Bearer\r\n"
    elif error.status == 415 and error.param is None:
        # With a field it concerns the content type, and its encoding is right (RFC 9110, 12.5.3).
        found += b"accept-encoding: gzip, deflate, zstd\r\n"
    elif isinstance(error, MethodNotAllowedError) and error.allow:
        found += b"allow: %s\r\n" % ", ".join(error.allow).encode()
    return found


def error_body(error: RequestError, path: str) -> bytes:
    """Return ``error`` as JSON in OpenAI's shape, or in Anthropic's for a ``path`` of /v1/messages."""
    if not path.startswith(_ANTHROPICS):
        return openai_body(error)
    kind = _ANTHROPIC.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    return json.dumps({"type": "error", "error": {"type": kind, "message": str(error)}}).encode()


def engine_body(error: EngineError | None, status: int, body: bytes, path: str) -> bytes:
    """Return an engine's error in the shape of the API of ``path``.

    A ``body`` that already has this shape is returned unchanged.
    """
    anthropic = path.startswith(_ANTHROPICS)
    if error is None:
        text = body.decode("utf-8", "replace").strip()[:500]
        error = EngineError(text or f"the engine returned {status} without a reason; see its log")
    elif not anthropic and body.lstrip()[:9] == b'{"error":':
        return body
    return error_body(EngineReportedError(error.message, status=status, param=error.param), path)


def error_event(error: RequestError, path: str, *, opening: bytes | None = None, sequence: int = 0) -> bytes:
    """Return ``error`` as the last event of a failed stream; no ``[DONE]`` follows it.

    On /v1/responses it is ``response.failed``, with the response object of the event that opened the stream
    (``opening``) and the event's number (``sequence``). It also has a top-level ``error``: OpenAI's SDKs raise on
    that, while Codex and Vercel's SDK read ``response.error``.
    """
    if path == "/v1/responses":
        return b"event: response.failed\ndata: %s\n\n" % _failed_response(error, opening, sequence)
    event = b"event: error\n" if path.startswith(_ANTHROPICS) else b""
    return b"%sdata: %s\n\n" % (event, error_body(error, path))


def _failed_response(error: RequestError, opening: bytes | None, sequence: int) -> bytes:
    response: dict[str, object] = {"id": "resp_failed", "object": "response", "created_at": 0, "output": []}
    response |= json.loads(opening) if opening is not None else {}
    response |= {"status": "failed", "error": {"code": error.code, "message": str(error)}}
    event: dict[str, object] = {"type": "response.failed", "sequence_number": sequence, "response": response}
    return json.dumps(event | json.loads(openai_body(error))).encode()


_ANTHROPICS = "/v1/messages"
"""Prefix of the paths of Anthropic's API."""

_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Anthropic's ``error.type`` by status (its API reference, "Errors")."""
