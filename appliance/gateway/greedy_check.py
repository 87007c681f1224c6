"""The comparison of an engine with itself: its text without sampling, after a load and after each wake.

A wake can restore other weights than those that slept, and lose adapters without an error. The engine then serves
noise with status 200. The same request at temperature 0 shows it. Pure: the caller sends the request.
"""

from __future__ import annotations

import json
from typing import Any

from appliance.contract.model import Model

PROMPT = "Count from one to ten in words."
MAX_TOKENS = 16


def served_names(name: str, model: Model) -> tuple[str, ...]:
    """Return the names under which an engine serves ``model``: its own and one for each adapter."""
    return (name, *(f"{name}:{adapter}" for adapter in model.adapters))


def greedy_request(served_name: str) -> bytes:
    """Return the body of the request for ``served_name``."""
    body = {
        "model": served_name,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    return json.dumps(body).encode()


def greedy_text(status: int, body: bytes) -> str | None:
    """Return the text of a response; ``None`` if it has none."""
    if status != 200:
        return None
    try:
        response: Any = json.loads(body)
        message = response["choices"][0]["message"]
    except (ValueError, LookupError, TypeError):
        return None
    # A reasoning model has its text in another field.
    return json.dumps([message.get("content"), message.get("reasoning"), message.get("reasoning_content")])
