"""The page of a plan."""

from __future__ import annotations

from typing import Any

from appliance.planner.page import page


def test_names_are_escaped() -> None:
    evil = "</script><script>alert(1)</script>"
    plan = {
        "title": evil,
        "headroom": 1.0,
        "tpot_ms": 1.0,
        "ttft_ms": 1.0,
        "chats_of_full_context": 1.0,
        "spare_cards": 0,
        "resilient": False,
        "parts": [{"model": evil, "limit": evil}],
    }
    bar = {
        "card": evil,
        "model": evil,
        "total": 90.0,
        "weights": 1.0,
        "working": 1.0,
        "kv": 1.0,
        "kv_tokens": 5,
    }
    data: dict[str, Any] = {
        "machines": [{"name": evil, "cards": [evil], "ram_gib": 1.0}],
        "demand": {"users": 1, "chats": 1, "think_s": 1.0},
        "recommended": plan,
        "reasons": [evil],
        "alternatives": [{**plan, "best_at": evil}],
        "simulation": [],
        "changes": [{"what": evil, "plan": None}],
        "memory": [bar],
        "curves": {},
        "nearest": {
            evil: [
                {
                    "title": evil,
                    "differences": [evil],
                    "source": "javascript:alert(1)",
                    "measured_tok_s": 1.0,
                    "predicted_tok_s": 1.0,
                    "distance": 0.5,
                }
            ]
        },
    }
    text = page(data)
    assert "<script>alert" not in text
    assert 'href="javascript' not in text
