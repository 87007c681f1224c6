"""The test whether an engine works: it must generate a token. ``/health`` is also 200 while the engine core hangs.

:func:`probe_token` is the whole test, for tools. The gateway probes over its own connections, with the same request
(:func:`canary`) and the same judgement (:func:`canary_passed`).
"""

from __future__ import annotations

import json
from typing import Any

from appliance.system.http_request import NO_RESPONSE, send_request

CANARY_TIMEOUT_S = 20.0
"""Seconds a canary may take. A busy engine processes it among its other sequences, a hung one never."""

SHOWN_BYTES = 200
"""Bytes of an engine's response that a reason quotes."""


def canary(model: str, task: str) -> tuple[str, bytes]:
    """Return path and body of the smallest request that makes the engine compute."""
    if task == "embed":
        return "/v1/embeddings", json.dumps({"model": model, "input": "ready?"}).encode()
    if task == "rerank":
        return "/v1/rerank", json.dumps({"model": model, "query": "ready?", "documents": ["yes"]}).encode()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "ready?"}],
        "max_tokens": 1,
        "temperature": 0,
    }
    return "/v1/chat/completions", json.dumps(body).encode()


def canary_passed(status: int, body: bytes) -> bool:
    """Return whether the response to a canary proves a computed token, vector or score."""
    if status != 200:
        return False
    try:
        response: Any = json.loads(body)
    except ValueError:
        return False
    if not isinstance(response, dict):
        return False
    usage = response.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if isinstance(tokens, int) and tokens >= 1:
        return True
    rows, results = response.get("data"), response.get("results")
    if isinstance(results, list) and results:
        return isinstance(results[0], dict) and "relevance_score" in results[0]
    row = rows[0] if isinstance(rows, list) and rows else None
    return isinstance(row, dict) and bool(row.get("embedding"))


def probe_token(url: str, model: str, task: str, timeout_s: float = CANARY_TIMEOUT_S) -> str:
    """Request one token of ``model`` from the engine at ``url``; return why there was none, or an empty string.

    Blocks; each wait for the engine takes ``timeout_s`` seconds at most. ``task`` is the model's: ``generate``,
    ``embed`` or ``rerank``.

    Example::

        reason = probe_token(replica.url, replica.engine.model, site.models[replica.engine.model].task)
    """
    path, body = canary(model, task)
    try:
        response = send_request(url, path, method="POST", body=body, timeout_s=timeout_s)
    except NO_RESPONSE as error:
        return f"no response ({type(error).__name__})"
    if canary_passed(response.status, response.body):
        return ""
    shown = " ".join(response.body[:SHOWN_BYTES].decode("utf-8", "replace").split())
    return f"no token in its response with status {response.status}: {shown}"
