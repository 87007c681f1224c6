"""Whether an engine works: it must generate a token. ``/health`` also answers when the engine core hangs."""

from __future__ import annotations

import json
from typing import Any

CANARY_TIMEOUT_S = 20.0
"""Seconds a canary may take. A busy engine answers it among its other sequences, a hung one never."""


def canary(model: str, task: str) -> tuple[str, bytes]:
    """``(path, body)`` of the smallest request that makes the engine compute."""
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
    """Whether the answer to a canary proves a computed token or vector."""
    if status != 200:
        return False
    try:
        answer: Any = json.loads(body)
    except ValueError:
        return False
    if not isinstance(answer, dict):
        return False
    usage = answer.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if isinstance(tokens, int) and tokens >= 1:
        return True
    rows, results = answer.get("data"), answer.get("results")
    if isinstance(results, list) and results:
        return isinstance(results[0], dict) and "relevance_score" in results[0]
    row = rows[0] if isinstance(rows, list) and rows else None
    return isinstance(row, dict) and bool(row.get("embedding"))
