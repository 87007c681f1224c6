"""Authentication by API key: states, time, memory, and the same work for every invalid key."""

from __future__ import annotations

import contextlib
from collections import Counter
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import AuthenticationError
from appliance.gateway import auth
from appliance.gateway.auth import Authenticator
from appliance.store.keys import KeyStore
from appliance.store.models import Key


def header(key: str) -> bytes:
    return f"Bearer {key}".encode()


def test_authentication_by_state_and_time(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    now = 1000.0
    key, brief = store.create("ada"), store.create("bob", expires_at=2000.0)
    authenticator = Authenticator(lambda: now)
    found = store.snapshot(-1)
    assert found is not None
    number, keys = found
    authenticator.replace(keys)
    assert store.snapshot(number) is None
    assert authenticator.authenticate(header(key)).user == "ada"
    assert authenticator.authenticate(header(brief)).user == "bob"
    now = 2000.0
    with pytest.raises(AuthenticationError):
        authenticator.authenticate(header(brief))
    swapped = key[:-1] + ("A" if key[-1] != "A" else "B")
    for invalid in (swapped, key + "A", key[:-1], key.upper(), "", "sk-", store.all()[0].id):
        with pytest.raises(AuthenticationError):
            authenticator.authenticate(header(invalid))
    with pytest.raises(AuthenticationError, match="You sent no API key"):
        authenticator.authenticate(None)
    with contextlib.closing(KeyStore(tmp_path)) as other:
        assert other.revoke(key).state(now) == "revoked"
    assert authenticator.authenticate(header(key)).user == "ada", "the change is not read yet"
    changed = store.snapshot(number)
    assert changed is not None
    authenticator.replace(changed[1])
    with pytest.raises(AuthenticationError):
        authenticator.authenticate(header(key))
    store.close()


def test_one_key_in_many_spellings_does_not_fill_the_memory(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    key = store.create("ada")
    authenticator = Authenticator()
    authenticator.replace(store.all())
    for spaces in range(1, 200):
        sent = b"Bearer " + b" " * spaces + key.encode()
        assert authenticator.authenticate(sent).user == "ada"
    assert not authenticator.verified
    authenticator.authenticate(header(key))
    assert len(authenticator.verified) == 1
    store.close()


def a_key(number: int, **more: Any) -> tuple[str, Key]:
    text = f"sk-{number:012x}-{'s' * 43}"
    return text, Key(f"{number:012x}", "ada", sha256(text.encode()).digest(), 0.0, **more)


def test_every_rejection_costs_one_hash_and_one_comparison_of_all_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is counted, not timed: a time would measure the machine's load."""
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
    invalid = (
        good[:-1] + "x", good[:17] + "x" * 43, unknown, revoked, expired,
        "", "sk-", good[:15], good + "x", "k" * 30_000,
    )  # fmt: skip
    messages = set()
    for token in invalid:
        work.clear()
        with pytest.raises(AuthenticationError) as refused:
            authenticator.authenticate(f"Bearer {token}".encode())
        assert work == {"hash": 1, "comparison": 1}, token[:80]
        messages.add(str(refused.value))
    assert len(messages) == 1, "the message reveals nothing either"
    work.clear()
    assert authenticator.authenticate(f"Bearer {good}".encode()) is known
    assert work == {"hash": 1, "comparison": 1}
