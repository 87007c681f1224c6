"""The test whether an engine works: it must generate a token. ``/health`` is also 200 while the engine core hangs.

:func:`probe_token` is the whole test, for tools. The gateway probes over its own connections, with the same request
(:func:`canary`) and the same judgement (:func:`canary_passed`). A server of kind http has a
weaker test, GET of a path: the appliance does not know the cost of its requests.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from appliance.contract.model import Engine
from appliance.system.http_request import NO_RESPONSE, send_request

CANARY_TIMEOUT_S = 20.0
"""Seconds a canary may take. A busy engine processes it among its other sequences, a hung one never."""

SHOWN_BYTES = 200
"""Bytes of an engine's response that a reason quotes."""


JSON_TYPE = "application/json"

BOUNDARY = "appliance-canary"
"""The boundary of the form of a canary. The form has no other text of a client."""

SAMPLE_RATE = 16_000
SILENT_S = 0.2
"""Seconds of silence in the canary of an engine that transcribes."""


@dataclass(frozen=True, slots=True)
class CanaryRequest:
    """The request of a canary: method, path, body and the body's content type."""

    path: str
    body: bytes = b""
    method: str = "POST"
    content_type: str = JSON_TYPE
    status_only: bool = False
    """Whether the status 200 passes, whatever the body is."""


def silent_wav(seconds: float = SILENT_S) -> bytes:
    """Return a WAV file of silence: one channel, 16 bits, :data:`SAMPLE_RATE`."""
    size = 2 * round(SAMPLE_RATE * seconds)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
    head = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE")
    return b"".join([head, form, struct.pack("<4sI", b"data", size), bytes(size)])


def canary_of(engine: Engine, task: str) -> CanaryRequest:
    """Return the canary of a replica of ``engine``, whose model has ``task``."""
    if engine.is_started:
        return canary(engine.model, task)
    return CanaryRequest(engine.health_path or "/v1/models", method="GET", status_only=True)


def canary(model: str, task: str) -> CanaryRequest:
    """Return the smallest request that makes the engine compute.

    Only the mock engine serves speech and images, and its canary is the list of models.
    """
    if task == "embed":
        return CanaryRequest("/v1/embeddings", json.dumps({"model": model, "input": "ready?"}).encode())
    if task == "rerank":
        rerank = {"model": model, "query": "ready?", "documents": ["yes"]}
        return CanaryRequest("/v1/rerank", json.dumps(rerank).encode())
    if task == "transcribe":
        return CanaryRequest(
            "/v1/audio/transcriptions",
            _form({"model": model, "max_completion_tokens": "1"}, silent_wav()),
            content_type=f"multipart/form-data; boundary={BOUNDARY}",
        )
    if task in ("speech", "image"):
        return CanaryRequest("/v1/models", method="GET", status_only=True)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "ready?"}],
        "max_tokens": 1,
        "temperature": 0,
    }
    return CanaryRequest("/v1/chat/completions", json.dumps(body).encode())


def _form(fields: dict[str, str], file: bytes) -> bytes:
    """Return ``fields`` and an audio ``file`` as a form with :data:`BOUNDARY`."""
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    disposition = 'form-data; name="file"; filename="ready.wav"'
    head = f"--{BOUNDARY}\r\ncontent-disposition: {disposition}\r\ncontent-type: audio/wav\r\n\r\n"
    return b"".join([*parts, head.encode(), file, f"\r\n--{BOUNDARY}--\r\n".encode()])


def canary_passed(status: int, body: bytes, *, status_only: bool = False) -> bool:
    """Return whether the response to a canary proves a computed token, vector, score or transcription.

    ``status_only`` is that of the request: then the status proves enough.
    """
    if status != 200 or status_only:
        return status == 200
    try:
        response: Any = json.loads(body)
    except ValueError:
        return False
    if not isinstance(response, dict):
        return False
    usage = response.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if (isinstance(tokens, int) and tokens >= 1) or isinstance(response.get("text"), str):
        return True
    rows, results = response.get("data"), response.get("results")
    if isinstance(results, list) and results:
        return isinstance(results[0], dict) and "relevance_score" in results[0]
    row = rows[0] if isinstance(rows, list) and rows else None
    return isinstance(row, dict) and bool(row.get("embedding"))


def probe_token(url: str, model: str, task: str, timeout_s: float = CANARY_TIMEOUT_S) -> str:
    """Request one token of ``model`` from the engine at ``url``; return why there was none, or an empty string.

    Blocks; each wait for the engine takes ``timeout_s`` seconds at most. ``task`` is the model's: ``generate``,
    ``embed`` and so on.

    Example::

        reason = probe_token(replica.url, replica.engine.model, site.models[replica.engine.model].task)
    """
    request = canary(model, task)
    try:
        response = send_request(
            url,
            request.path,
            method=request.method,
            body=request.body or None,
            headers={"Content-Type": request.content_type},
            timeout_s=timeout_s,
        )
    except NO_RESPONSE as error:
        return f"no response ({type(error).__name__})"
    if canary_passed(response.status, response.body, status_only=request.status_only):
        return ""
    shown = " ".join(response.body[:SHOWN_BYTES].decode("utf-8", "replace").split())
    return f"no token in its response with status {response.status}: {shown}"
