"""HTTP/1.1 responses as bytes. Pure: it formats, its callers write."""

from __future__ import annotations

import json
import math
from http import HTTPStatus

from appliance.errors import EngineReportedError, MethodNotAllowedError, RequestError, openai_body
from appliance.gateway.engine_error import EngineError

JSON = b"application/json"
TEXT = b"text/plain; version=0.0.4; charset=utf-8"

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}
_OK_JSON = _STATUS_LINES[200] + b"content-type: application/json\r\n"

SSE = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"

LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def status_line(status: int) -> bytes:
    """Return the status line of a response; an unregistered status gets an empty phrase."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def encode_response(status: int, body: bytes, kind: bytes, headers: bytes, *, close: bool) -> bytes:
    """Return a whole response; ``headers`` are further lines, each with its CRLF."""
    if status == 204:
        # A 204 has no content and no Content-Length (RFC 9110, 8.6).
        return b"%s%s%s\r\n" % (status_line(204), headers, b"connection: close\r\n" if close else b"")
    first = _OK_JSON if status == 200 and kind == JSON else b"%scontent-type: %s\r\n" % (status_line(status), kind)
    last = b"connection: close\r\n" if close else b""
    return b"%s%s%scontent-length: %d\r\n\r\n%s" % (first, headers, last, len(body), body)


def stream_head(status: int, headers: bytes, *, chunked: bool, close: bool) -> bytes:
    """Return the head of an SSE response; HTTP/1.0 clients get no chunks, but the end of the connection."""
    framing = b"transfer-encoding: chunked\r\n" if chunked else b""
    return b"%s%s%s%s%s\r\n" % (
        status_line(status),
        SSE,
        headers,
        framing,
        b"connection: close\r\n" if close else b"",
    )


def id_headers(request_id: str, path: str) -> bytes:
    """Return the header lines that name a request; Anthropic's SDKs read ``request-id``."""
    known = request_id.encode()
    if path.startswith(_ANTHROPICS):
        return b"x-request-id: %s\r\nrequest-id: %s\r\n" % (known, known)
    return b"x-request-id: %s\r\n" % known


def error_headers(error: RequestError) -> bytes:
    """Return the header lines of an error: ``Retry-After``, ``WWW-Authenticate`` with 401, ``Allow`` with 405."""
    found = b""
    if error.retry_after is not None:
        found += b"retry-after: %d\r\n" % max(1, math.ceil(error.retry_after))
    if error.status == 401:
        found += b"www-authenticate: Bearer\r\n"
    elif error.status == 415:
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
