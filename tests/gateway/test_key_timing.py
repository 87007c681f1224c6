"""Wrong keys take the same work as right ones: no clock tells an attacker which part of a key is right."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from hmac import compare_digest
from typing import Any

import pytest

from appliance.errors import AuthenticationError
from appliance.gateway import auth
from appliance.gateway.auth import Authenticator
from appliance.store.models import Key


def a_key(number: int, **more: Any) -> tuple[str, Key]:
    text = f"sk-{number:012x}-{'s' * 43}"
    return text, Key(f"{number:012x}", "ada", sha256(text.encode()).digest(), 0.0, **more)


def test_every_rejection_costs_one_hash_and_one_comparison_of_all_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: a clock would tell the machine's load."""
    work: Counter[str] = Counter()

    def counted_hash(data: bytes) -> object:
        work["hash"] += 1
        return sha256(data)

    def counted_comparison(one: bytes, other: bytes) -> bool:
        work["comparison"] += len(one) == len(other) == 32
        return compare_digest(one, other)

    monkeypatch.setattr(auth, "sha256", counted_hash)
    monkeypatch.setattr(auth, "compare_digest", counted_comparison)
    good, known = a_key(1)
    revoked, dead = a_key(2, revoked_at=1.0)
    expired, old = a_key(3, expires_at=1.0)
    unknown, _ = a_key(4)
    authenticator = Authenticator(lambda: 10.0)
    authenticator.replace([known, dead, old])
    wrong = (
        good[:-1] + "x", good[:17] + "x" * 43, unknown, revoked, expired,
        "", "sk-", good[:15], good + "x", "k" * 30_000,
    )  # fmt: skip
    said = set()
    for token in wrong:
        work.clear()
        with pytest.raises(AuthenticationError) as refused:
            authenticator.authenticate(f"Bearer {token}".encode())
        assert work == {"hash": 1, "comparison": 1}, token[:80]
        said.add(str(refused.value))
    assert len(said) == 1, "nor do the words tell"
    work.clear()
    assert authenticator.authenticate(f"Bearer {good}".encode()) is known
    assert work == {"hash": 1, "comparison": 1}
