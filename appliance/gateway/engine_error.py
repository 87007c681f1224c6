"""Reads an engine's error: its message, and whether the mistake is the client's. Pure.

The form of an error (a status, an event inside a stream with status 200) does not identify its cause. The engine
vLLM reports 28 kinds of client mistakes inside a stream that began with 200: the ``code`` in the event decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.errors import InvalidRequestError
from appliance.gateway import json_text

_STATUS_BY_TYPE = {
    "BadRequestError": 400,
    "Bad Request": 400,
    "invalid_request_error": 400,
    "NotFoundError": 404,
    "not_found_error": 404,
    "request_too_large": 413,
    "UnprocessableEntityError": 422,
    "NotImplementedError": 501,
    "ServiceUnavailableError": 503,
    "overloaded_error": 503,
}
"""Statuses of error types that name one: vLLM 0.32's ``create_error_response``, OpenAI's and Anthropic's."""


@dataclass(frozen=True, slots=True)
class EngineError:
    """An error as an engine reported it. ``status`` is the HTTP status that it names, or ``None``."""

    message: str
    status: int | None = None
    param: str | None = None

    @property
    def clients(self) -> bool:
        """Whether the error names a mistake of the client."""
        return self.status is not None and 400 <= self.status < 500


def read_error(body: bytes) -> EngineError | None:
    """Read an error in any engine's JSON form; return ``None`` if ``body`` is not an error.

    The forms: OpenAI's ``{"error": {...}}``, Anthropic's ``{"type": "error", "error": {...}}``, an event of
    /v1/responses (``{"type": "error", "message": ...}``, ``response.failed``), FastAPI's ``{"detail": ...}``, and
    ``{"object": "error", ...}`` of older engines.
    """
    try:
        table = json_text.numbers(body)
    except InvalidRequestError:
        return None
    if not isinstance(table, dict):
        return None
    response = table.get("response")
    error = table.get("error") or (response.get("error") if isinstance(response, dict) else None)
    if error is None and "error" in (table.get("type"), table.get("object")):
        error = table
    found = error or table.get("detail")
    if isinstance(found, dict):
        return _from(found)
    return EngineError(found if isinstance(found, str) else str(found)) if found else None


def _from(table: dict[str, Any]) -> EngineError:
    message, kind, param = table.get("message"), table.get("type"), table.get("param")
    kind = kind if isinstance(kind, str) else ""
    return EngineError(
        message if isinstance(message, str) and message else "the engine gave no reason; see its log",
        _status(table.get("code"), kind),
        param if isinstance(param, str) else None,
    )


def _status(code: object, kind: str) -> int | None:
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        code = int(code)
    if isinstance(code, int) and 400 <= code <= 599:
        return code
    return _STATUS_BY_TYPE.get(kind)
