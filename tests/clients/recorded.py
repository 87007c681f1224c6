"""The recorded requests of real clients, their replay, and the shape of the responses.

``requests.json`` holds one request of each client and path, as n8n, Open WebUI, Claude Code and others sent it. A
text is ``<its length>``, a list may be shorter than it was, ``restored`` names fields that were not recorded.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("requests.json")
LENGTH = re.compile(r"<(\d+)>")
LONGEST_TEXT = 8
"""Characters of a replayed text: the real lengths do not fit the small model's context."""

MAX_TOKENS = 8
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@dataclass(frozen=True)
class Recorded:
    """One recorded request."""

    client: str
    method: str
    path: str
    status: int
    key: str | None
    """The header that carried the key."""
    headers: dict[str, str]
    body: dict[str, Any] | None = None
    restored: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.client}-{self.method}-{self.path}"


def recorded() -> list[Recorded]:
    """Read all recorded requests."""
    return [
        Recorded(**{**line, "restored": tuple(line.get("restored", ()))}) for line in json.loads(FILE.read_text())
    ]


@dataclass(frozen=True)
class ResponseShape:
    """A response without its values: what a client's parser depends on."""

    status: int
    kind: str
    """The content type."""
    body: Any
    """The structure of a whole body; for a stream those of its frames, equal neighbours once, without text."""
    texts: frozenset[str] = field(default_factory=frozenset)
    """The structures of the frames of a stream that carry text only; their number depends on time."""


def replay(request: Recorded, port: int, key: str, model: str, *, limit: int | None = MAX_TOKENS) -> ResponseShape:
    """Send ``request`` to ``port`` for ``model``; ``limit`` replaces its limit of tokens, ``None`` keeps it."""
    with _sent(request, port, key, model, limit) as response:
        return shape(response.status, response.headers.get("content-type", ""), response.read())


def status_of(request: Recorded, port: int, key: str, model: str, *, limit: int) -> int:
    """Send ``request`` like :func:`replay` and disconnect after the head; return its status."""
    with _sent(request, port, key, model, limit) as response:
        return response.status


@contextmanager
def _sent(
    request: Recorded, port: int, key: str, model: str, limit: int | None
) -> Iterator[http.client.HTTPResponse]:
    headers = {name: _filled(value) for name, value in request.headers.items()}
    if request.key is not None:
        headers[request.key] = f"Bearer {key}" if request.key == "authorization" else key
    body = None
    if request.body is not None:
        headers["content-type"] = "application/json"
        fields = _filled(request.body) | {"model": model}
        if request.path.partition("?")[0] not in ("/v1/embeddings", "/v1/rerank"):
            # The most probable tokens, so that both sides generate the same.
            fields["temperature"] = 0
        if limit is not None:
            fields |= {name: limit for name in LIMITS if name in fields}
            if not any(name in fields for name in LIMITS) and "temperature" in fields:
                fields["max_output_tokens" if "responses" in request.path else "max_tokens"] = limit
        body = json.dumps(fields)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with closing(connection):
        connection.request(request.method, request.path.replace("Qwen/Qwen3-tiny", model), body, headers)
        with connection.getresponse() as response:
            yield response


def without(stream: ResponseShape, name: str) -> ResponseShape:
    """Return the shape ``stream`` without the text field ``name`` at the top of its frames."""
    removed = f', "{name}": "str"'
    return replace(stream, body=tuple(frame.replace(removed, "") for frame in stream.body))


def _filled(value: Any) -> Any:
    """Return ``value`` with a text in place of each ``<length>``."""
    if isinstance(value, dict):
        return {name: _filled(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner) for inner in value]
    if isinstance(value, str) and (match := LENGTH.fullmatch(value)):
        return ("abcdefgh" * 2)[: min(int(match[1]), LONGEST_TEXT)]
    return value


def shape(status: int, kind: str, body: bytes) -> ResponseShape:
    """Return the shape of a response; ``kind`` is its content type."""
    if not kind.startswith("text/event-stream"):
        json_body = kind.startswith("application/json") and body
        return ResponseShape(status, kind, structure(json.loads(body)) if json_body else None)
    frames: list[str] = []
    texts: set[str] = set()
    for frame in body.decode().split("\n\n"):
        name, _, data = frame.rpartition("data: ")
        if frame.startswith(":") or not frame:
            continue
        value = None if data == "[DONE]" else json.loads(data)
        line = f"{name.strip()} {json.dumps(structure(value))}" if value is not None else data
        if value is not None and _is_text(value):
            texts.add(line)
        elif not frames or frames[-1] != line:
            frames.append(line)
    return ResponseShape(status=status, kind=kind, body=tuple(frames), texts=frozenset(texts))


def _is_text(frame: dict[str, Any]) -> bool:
    """Return whether ``frame`` has a piece of text or of arguments, and no other information."""
    if "choices" in frame:
        first = (frame["choices"] or [{"finish_reason": "usage only"}])[0]
        return first.get("finish_reason") is None and "role" not in first.get("delta", {})
    return str(frame.get("type", "")).endswith(("delta", "_delta")) and frame.get("type") != "message_delta"


def structure(value: Any) -> Any:
    """Return the keys of ``value`` and the types of its values, to the leaves; a list is the set of its items."""
    if isinstance(value, dict):
        return {name: structure(inner) for name, inner in sorted(value.items())}
    if isinstance(value, list):
        return sorted({json.dumps(structure(inner)) for inner in value})
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
