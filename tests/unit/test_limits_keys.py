"""Allowances over time, and keys at rest."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import Limits
from appliance.errors import AuthenticationError, RateLimitError, StoreError, UsageError
from appliance.gateway.keys import Authenticator, Key
from appliance.gateway.limits import Ledger
from appliance.store.keys import KeyStore


def a_key(user: str, key_id: str = "0" * 12, **limits: Any) -> Key:
    return Key(key_id, user, b"", 0.0, **limits)


def refused(ledger: Ledger, user: str, now: float) -> float | None:
    """Seconds to wait, or ``None`` when admitted."""
    try:
        ledger.admit(a_key(user), now)
    except RateLimitError as error:
        return error.retry_after
    return None


def test_requests_per_minute_refill_and_are_each_users_own() -> None:
    ledger = Ledger(Limits(requests_per_minute=2), {"vip": Limits()})
    assert [refused(ledger, "a", 0), refused(ledger, "a", 0), refused(ledger, "a", 0)] == [None, None, 30.0]
    assert refused(ledger, "b", 0) is None
    assert all(refused(ledger, "vip", 0) is None for _ in range(100))
    assert refused(ledger, "a", 29) == pytest.approx(1.0)
    assert refused(ledger, "a", 30) is None


def test_tokens_are_charged_afterwards_and_bar_the_next() -> None:
    ledger = Ledger(Limits(tokens_per_minute=60), {})
    ledger.finish(ledger.admit(a_key("a"), 0), 90, 0)
    assert refused(ledger, "a", 0) == 30.0
    assert refused(ledger, "a", 30) is None


def test_requests_in_flight() -> None:
    ledger = Ledger(Limits(requests_in_flight=1), {})
    running = ledger.admit(a_key("a"), 0)
    assert refused(ledger, "a", 0) == 1
    ledger.finish(running, 0, 1)
    assert refused(ledger, "a", 1) is None


@given(st.lists(st.tuples(st.floats(-5, 20), st.integers(0, 200)), max_size=60))
def test_no_more_than_burst_plus_rate_however_the_clock_moves(steps: list[tuple[float, int]]) -> None:
    ledger = Ledger(Limits(requests_per_minute=6, tokens_per_minute=600), {})
    now, forward, admitted = 0.0, 0.0, 0
    for step, tokens in steps:
        now += step
        forward += max(step, 0.0)
        try:
            running = ledger.admit(a_key("a"), now)
        except RateLimitError:
            continue
        admitted += 1
        ledger.finish(running, tokens, now)
    assert admitted <= 6 + forward / 10 + 1e-6


def test_a_keys_own_limits_narrow_its_users_and_may_change() -> None:
    ledger = Ledger(Limits(requests_per_minute=3), {})
    narrow = a_key("a", requests_per_minute=1)
    ledger.finish(ledger.admit(narrow, 0), 0, 0)
    with pytest.raises(RateLimitError, match="This key has used up 1 requests per minute"):
        ledger.admit(narrow, 0)
    wider = a_key("a", requests_per_minute=100)
    assert [refused_by(ledger, wider, 0) for _ in range(3)] == [None, None, 30.0 - 10.0]
    once = a_key("b", "1" * 12, requests_in_flight=1)
    running = ledger.admit(once, 0)
    changed = a_key("b", "1" * 12, requests_in_flight=2)
    second = ledger.admit(changed, 0)
    assert refused_by(ledger, changed, 0) == 1, "what ran before the change still counts"
    ledger.finish(running, 0, 0)
    ledger.finish(second, 0, 0)
    ledger.admit(changed, 0)


def refused_by(ledger: Ledger, key: Key, now: float) -> float | None:
    try:
        ledger.admit(key, now)
    except RateLimitError as error:
        return error.retry_after
    return None


def test_a_keys_weight_comes_before_its_users() -> None:
    ledger = Ledger(Limits(weight=2.0), {"vip": Limits(weight=5.0)})
    assert [ledger.weight(a_key("a")), ledger.weight(a_key("vip")), ledger.weight(a_key("vip", weight=1.0))] == [
        2.0,
        5.0,
        1.0,
    ]


def header(key: str) -> bytes:
    return f"Bearer {key}".encode()


def test_keys_are_stored_as_digests_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    key = store.create("ada")
    store.close()
    assert (tmp_path / "appliance.sqlite").stat().st_mode & 0o077 == 0
    assert key.encode() not in (tmp_path / "appliance.sqlite").read_bytes()
    row = sqlite3.connect(tmp_path / "appliance.sqlite").execute("SELECT digest FROM keys").fetchone()
    assert row[0] == hashlib.sha256(key.encode()).digest()


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
    for wrong in (swapped, key + "A", key[:-1], key.upper(), "", "sk-", store.all()[0].id):
        with pytest.raises(AuthenticationError):
            authenticator.authenticate(header(wrong))
    with pytest.raises(AuthenticationError, match="You sent no API key"):
        authenticator.authenticate(None)
    other = KeyStore(tmp_path)
    assert other.revoke(key).state(now) == "revoked"
    assert authenticator.authenticate(header(key)).user == "ada", "not known yet"
    changed = store.snapshot(number)
    assert changed is not None
    authenticator.replace(changed[1])
    with pytest.raises(AuthenticationError):
        authenticator.authenticate(header(key))


def test_one_key_in_many_spellings_does_not_fill_the_memory(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    key = store.create("ada")
    authenticator = Authenticator()
    authenticator.replace(store.all())
    for spaces in range(1, 200):
        sent = b"Bearer " + b" " * spaces + key.encode()
        assert authenticator.authenticate(sent).user == "ada"
    assert not authenticator._verified
    authenticator.authenticate(header(key))
    assert len(authenticator._verified) == 1
    store.close()


def test_a_database_that_breaks_while_it_is_read_is_said(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    with sqlite3.connect(tmp_path / "appliance.sqlite") as db:
        db.execute("DROP TABLE keys")
    db.close()
    for read in (store.all, lambda: store.snapshot(-1), lambda: store.get("000000000000")):
        with pytest.raises(StoreError, match="the database refuses"):
            read()
    store.close()


@pytest.mark.parametrize("user", ["", "a b", "-x", "é", "x" * 64, "a\n"])
def test_users_have_plain_names(tmp_path: Path, user: str) -> None:
    with pytest.raises(UsageError, match="is no user's name"):
        KeyStore(tmp_path).create(user)


def test_what_cannot_be_opened_or_found_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be opened"):
        KeyStore(tmp_path / "file")
    with pytest.raises(UsageError, match="there is no key with that id"):
        KeyStore(tmp_path).revoke("000000000000")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "appliance.sqlite").write_bytes(b"not a database, not at all, really not" * 40)
    with pytest.raises(StoreError, match="cannot be opened"):
        KeyStore(broken)
