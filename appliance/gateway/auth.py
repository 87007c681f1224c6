"""API keys as the gateway knows them: a snapshot in memory, compared in constant time.

A key is ``sk-<id>-<secret>``. The id finds the row, the digest of the whole key decides; a key holds 256
random bits, so a plain SHA-256 is as good as a slow hash. The store is asked every :data:`POLL_S` whether
anything changed, so a revocation bites within a second.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from hmac import compare_digest
from typing import Literal

from appliance.errors import AuthenticationError

POLL_S = 0.25
KEY = re.compile(rb"sk-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
LONGEST = 128
"""Bytes of what is sent that are hashed; a key has 60."""

NO_DIGEST = bytes(32)


State = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class Key:
    """One key as stored; times are seconds since the epoch. Its limits narrow its user's, never widen them."""

    id: str
    user: str
    digest: bytes
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    name: str = ""
    models: frozenset[str] | None = None
    """Models and roles it may ask for; all when ``None``."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_in_flight: int | None = None
    weight: float | None = None
    """Priority weight in the queue; its user's when ``None``."""
    end_users: bool = False
    """Whether requests name the end users they are for, and each of those counts as a user."""

    def state(self, now: float) -> State:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "active"

    @property
    def limited(self) -> bool:
        """Whether it has limits of its own."""
        return (
            self.requests_per_minute is not None
            or self.tokens_per_minute is not None
            or self.requests_in_flight is not None
        )

    @property
    def account(self) -> str:
        """The user that the key was made for, whichever end user uses it. A user's name has no slash."""
        return self.user.partition("/")[0]

    @property
    def scope(self) -> str:
        """The caller within which an ``Idempotency-Key`` counts: this key, and the end user behind it."""
        return f"{self.id}/{self.user}"

    def of_end_user(self, name: str) -> Key:
        """Return this key as end user ``name`` uses it: its ``user`` is ``<account>/<name>``."""
        return replace(self, user=f"{self.account}/{name}")

    def allows(self, name: str) -> bool:
        """Whether it may ask for the model or role ``name``."""
        return self.models is None or name in self.models


class Authenticator:
    """Tells whose key a request bears."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._keys: dict[bytes, Key] = {}
        self._verified: dict[bytes, Key] = {}
        self.generation = 0
        """Changes with the keys: a key that was verified in this generation has not been revoked since."""

    def replace(self, keys: Iterable[Key]) -> None:
        """From now on these are the keys."""
        self._verified = {}
        self.generation += 1
        self._keys = {key.id.encode(): key for key in keys}

    def authenticate_any(self, headers: Mapping[bytes, bytes]) -> Key:
        """Return the key of the first valid credential in ``headers``: ``authorization``, then ``x-api-key``.

        Anthropic's clients send ``x-api-key``, Azure's ``api-key``. An Authorization header that is empty or meant
        for a proxy in front does not hide them. Raises :class:`AuthenticationError`.
        """
        sent = headers.get(b"authorization")
        own = headers.get(b"x-api-key") or headers.get(b"api-key")
        if own is None:
            return self.authenticate(sent)
        if sent is not None:
            with contextlib.suppress(AuthenticationError):
                return self.authenticate(sent)
        return self.authenticate(b"Bearer " + own)

    def authenticate(self, sent: bytes | None) -> Key:
        """The key of a request's ``authorization`` header (or of ``Bearer`` and an ``x-api-key``).

        Raises :class:`AuthenticationError`, with the same words whatever is wrong with a key that was sent.
        An unknown id costs the same hash and comparison as a known one.
        """
        if not sent:
            raise AuthenticationError("You sent no API key; send it as `Authorization: Bearer sk-...`")
        known = self._verified.get(sent)
        if known is not None and (known.expires_at is None or self._clock() < known.expires_at):
            # Verified since the keys last changed. Who gets here knows the whole key already.
            return known
        token = sent[7:].strip()
        match = KEY.fullmatch(token) if sent[:7].lower() == b"bearer " else None
        key = self._keys.get(match.group(1)) if match else None
        digest = sha256(token[:LONGEST]).digest()
        same = compare_digest(digest, key.digest if key is not None else NO_DIGEST)
        if key is None or not same or key.state(self._clock()) != "active":
            if sent[:7].lower() != b"bearer ":
                message = "The header Authorization has no API key; write `Authorization: Bearer sk-...`"
                raise AuthenticationError(message)
            raise AuthenticationError("This API key is not valid; ask the owner of the service for one")
        if len(sent) == len(token) + 7:
            # Only as it is meant to be written: one key with ever more spaces must not fill the memory.
            self._verified[sent] = key
        return key
