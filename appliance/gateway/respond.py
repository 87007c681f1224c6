"""Small ASGI answers: JSON, errors in OpenAI's shape, error events inside a stream."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

from appliance.errors import RequestError, openai_body

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = b"application/json"


async def answer(
    send: Send, status: int, body: bytes, content_type: bytes = JSON, *headers: tuple[bytes, bytes]
) -> None:
    """One whole answer."""
    own = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})


async def answer_error(send: Send, error: RequestError, *headers: tuple[bytes, bytes]) -> None:
    """``error`` as OpenAI's clients expect it, with ``Retry-After`` where waiting helps."""
    extra = list(headers)
    if error.retry_after is not None:
        extra.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
    if error.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    await answer(send, error.status, openai_body(error), JSON, *extra)


def error_event(error: RequestError) -> bytes:
    """``error`` as the last event of a stream that cannot go on; no ``[DONE]`` follows it."""
    return b"data: " + openai_body(error) + b"\n\n"
