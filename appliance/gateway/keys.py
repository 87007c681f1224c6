"""API keys: made once, shown once, stored as SHA-256, compared in constant time.

A key is ``sk-<id>-<secret>``. The id finds the row, the digest of the whole key decides; a key holds 256
random bits, so a plain SHA-256 is as good as a slow hash. The gateway keeps a snapshot in memory and looks
every :data:`POLL_S` whether the file changed, so a revocation bites within a second.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import AuthenticationError, StoreError, UsageError

POLL_S = 0.25
KEY = re.compile(r"sk-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY,
    user TEXT NOT NULL,
    digest BLOB NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL,
    revoked_at REAL
)
"""


@dataclass(frozen=True, slots=True)
class Key:
    """One key as stored; times are seconds since the epoch."""

    id: str
    user: str
    digest: bytes
    created_at: float
    expires_at: float | None
    revoked_at: float | None

    def state(self, now: float) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "active"


class KeyStore:
    """The keys of one gateway, in ``keys.sqlite`` of its data folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The file must exist with its mode before SQLite opens it: it holds digests and users' names.
            self.path.touch(mode=0o600)
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA busy_timeout = 5000")
            self._db.execute(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self.path}: cannot be opened ({error}); check the folder and its owner") from error

    def create(self, user: str, *, expires_at: float | None = None) -> str:
        """Make a key for ``user`` and return it; nothing keeps it in clear."""
        if not USER.fullmatch(user):
            raise UsageError(
                f"{user!r} is no user's name; use letters, digits, dot, dash and underscore, at most 63"
            )
        key_id = secrets.token_hex(6)
        key = f"sk-{key_id}-{secrets.token_urlsafe(32)}"
        row = (key_id, user, hashlib.sha256(key.encode()).digest(), time.time(), expires_at)
        self._db.execute("INSERT INTO keys (id, user, digest, created_at, expires_at) VALUES (?, ?, ?, ?, ?)", row)
        return key

    def revoke(self, key_id: str) -> Key:
        """Revoke the key with this id (or the key itself); raises :class:`UsageError` where there is none."""
        match = KEY.fullmatch(key_id)
        wanted = match.group(1) if match else key_id
        self._db.execute(
            "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (time.time(), wanted)
        )
        for key in self.list():
            if key.id == wanted:
                return key
        raise UsageError("there is no key with that id; `appliance keys list` shows them")

    def list(self) -> list[Key]:
        """Every key, oldest first."""
        columns = "id, user, digest, created_at, expires_at, revoked_at"
        return [Key(*row) for row in self._db.execute(f"SELECT {columns} FROM keys ORDER BY created_at")]  # noqa: S608

    def version(self) -> int:
        """A number that changes when another process wrote to the file."""
        row = self._db.execute("PRAGMA data_version").fetchone()
        return int(row[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()


class Authenticator:
    """Tells whose key a request bears."""

    def __init__(self, store: KeyStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._version = -1
        self._keys: dict[str, Key] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take over what other processes changed; cheap when nothing did."""
        version = self._store.version()
        if version != self._version:
            self._keys = {key.id: key for key in self._store.list()}
            self._version = version

    def authenticate(self, headers: list[tuple[bytes, bytes]]) -> Key:
        """The key of a request's ``authorization`` header.

        Raises :class:`AuthenticationError`, with the same words whatever is wrong with a key that was sent.
        An unknown id costs the same hash and comparison as a known one.
        """
        values = [value for name, value in headers if name == b"authorization"]
        if not values:
            raise AuthenticationError("You sent no API key; send it as `Authorization: Bearer sk-...`")
        token = values[0].decode("latin1")
        scheme, _, sent = token.partition(" ")
        match = KEY.fullmatch(sent.strip()) if scheme.lower() == "bearer" and len(values) == 1 else None
        key = self._keys.get(match.group(1)) if match else None
        digest = hashlib.sha256(sent.strip().encode()).digest()
        same = hmac.compare_digest(digest, key.digest if key is not None else bytes(32))
        if key is None or not same or key.state(self._clock()) != "active":
            raise AuthenticationError("This API key is not valid; ask the owner of the service for one")
        return key
