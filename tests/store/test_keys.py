"""API keys in the database: digests, permissions, names, and errors of the database."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path

import pytest

from appliance.errors import StoreError, UsageError
from appliance.store.keys import KeyStore


def test_keys_are_stored_as_digests_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    key = store.create("ada")
    store.close()
    assert (tmp_path / "appliance.sqlite").stat().st_mode & 0o077 == 0
    assert key.encode() not in (tmp_path / "appliance.sqlite").read_bytes()
    with contextlib.closing(sqlite3.connect(tmp_path / "appliance.sqlite")) as db:
        row = db.execute("SELECT digest FROM keys").fetchone()
    assert row[0] == hashlib.sha256(key.encode()).digest()


def test_a_database_that_fails_while_it_is_read_is_reported(tmp_path: Path) -> None:
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
    with contextlib.closing(KeyStore(tmp_path)) as store, pytest.raises(UsageError, match="is not a user name"):
        store.create(user)


def test_an_unknown_key_cannot_be_revoked(tmp_path: Path) -> None:
    with (
        contextlib.closing(KeyStore(tmp_path)) as store,
        pytest.raises(UsageError, match="a key with that id does not exist"),
    ):
        store.revoke("000000000000")


def test_a_database_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be opened"):
        KeyStore(tmp_path / "file")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "appliance.sqlite").write_bytes(b"not a database, not at all, really not" * 40)
    with pytest.raises(StoreError, match="cannot be opened"):
        KeyStore(damaged)
