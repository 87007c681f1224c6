"""The assignment of chats to replicas: stable, balanced, bounded."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.gateway.body import decode
from appliance.gateway.hash_ring import Ring, bound, chat_key


def key(body: dict[str, Any], headers: dict[bytes, bytes] | None = None, user: str = "ada") -> bytes | None:
    return chat_key(decode(json.dumps({"model": "m", **body}).encode()), headers or {}, user)


def turn(*texts: str) -> dict[str, Any]:
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    return {"messages": [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]}


def test_a_chat_keeps_its_key_over_its_turns() -> None:
    first = key(turn("be brief", "hello"))
    assert (
        first == key(turn("be brief", "hello", "hi", "and now?")) == key(turn("be brief", "hello", "hi", "x", "y"))
    )
    assert first != key(turn("be brief", "other"))
    assert first != key(turn("be long", "hello"))


def test_a_conversation_of_responses_keeps_its_key_too() -> None:
    def items(*texts: str) -> dict[str, Any]:
        return {"input": turn(*texts)["messages"]}

    first = key(items("be brief", "hello"))
    assert first == key(items("be brief", "hello", "hi", "and now?")) != key(items("be brief", "other"))
    odd = {"input": [{"role": 7}]}
    assert key(odd) == json.dumps(odd["input"]).encode(), "any other input is a prompt"


def test_a_chat_id_precedes_the_text_and_is_valid_within_its_user() -> None:
    one = key(turn("s", "a"), {b"x-chat-id": b"7"})
    assert one == key(turn("s", "b"), {b"x-chat-id": b"7"})
    assert one != key(turn("s", "a"), {b"x-chat-id": b"7"}, user="bob")
    assert key({"prompt_cache_key": "7"}) == one
    assert key({"prompt": "x" * 5000}) == key({"prompt": "x" * 5000 + "y"})
    assert key({"input": ["a"]}) == b'["a"]'
    assert key({}) is None


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8, unique=True), st.binary(max_size=40))
def test_every_replica_is_in_the_order_once(names: list[str], chat: bytes) -> None:
    order = Ring(names).order(chat)
    assert sorted(order) == sorted(names)
    assert order == Ring(names).order(chat)


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(0, 7), st.integers(0, 2**32))
def test_removing_a_replica_moves_its_own_chats_only(count: int, gone: int, seed: int) -> None:
    names = [f"engine.{i}" for i in range(count)]
    left = [name for i, name in enumerate(names) if i != gone % count]
    before, after = Ring(names), Ring(left)
    for number in range(50):
        chat = f"{seed}/{number}".encode()
        kept = [name for name in before.order(chat) if name in left]
        assert after.order(chat)[0] == kept[0]


@pytest.mark.parametrize("count", [2, 4, 8])
def test_chats_spread_evenly(count: int) -> None:
    ring = Ring([f"engine.{i}" for i in range(count)])
    shares = Counter(ring.order(f"chat {i}".encode())[0] for i in range(20_000))
    assert max(shares.values()) / (20_000 / count) < 1.5
    assert min(shares.values()) / (20_000 / count) > 0.6


@settings(deadline=None)
@given(st.lists(st.binary(max_size=6), max_size=200), st.integers(2, 6), st.floats(1, 3))
def test_no_replica_gets_much_more_than_the_mean(chats: list[bytes], count: int, factor: float) -> None:
    """Walking the order until one is within its bound always ends, and keeps every load within it."""
    names = [f"e{i}" for i in range(count)]
    ring = Ring(names)
    loads = dict.fromkeys(names, 0)
    for total, chat in enumerate(chats):
        limit = bound(total, count, 4, factor)
        chosen = next(name for name in ring.order(chat) if loads[name] < limit)
        loads[chosen] += 1
        assert loads[chosen] <= max(factor * (total + 1) / count + 1, 1)
