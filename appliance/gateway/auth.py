"""Authentication by API key: a snapshot of the keys in memory, compared in constant time.

A key is ``sk-<id>-<secret>``. Its id selects the record; the digest of the whole key decides. A key holds 256
random bits, so a plain SHA-256 is as good as a slow hash. The gateway polls the store for changes every
:data:`POLL_S` seconds, so a revocation takes effect within a second.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from hmac import compare_digest

from appliance.errors import AuthenticationError
from appliance.store.models import KEY, Key

POLL_S = 0.25
"""Seconds between two reads of the store."""

LONGEST = 128
"""Bytes of a credential that are hashed; a key has 60."""

NO_DIGEST = bytes(32)


class Authenticator:
    """The keys that are valid now, and the credentials verified against them."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._keys: dict[bytes, Key] = {}
        self.verified: dict[bytes, Key] = {}
        """Keys by the ``authorization`` header that was verified; emptied when the keys change."""
        self.generation = 0
        """Number of changes of the keys: a key verified in this generation has not been revoked since."""

    def replace(self, keys: Iterable[Key]) -> None:
        """Use ``keys`` from now on."""
        self.verified = {}
        self.generation += 1
        self._keys = {key.id.encode(): key for key in keys}

    def by_id(self, key_id: bytes | None) -> Key:
        """Return the key with this id, for a caller on this machine that proved its identity otherwise.

        Raises :class:`AuthenticationError` unless the key is active.
        """
        key = self._keys.get(key_id or b"")
        if key is None or key.state(self._clock()) != "active":
            raise AuthenticationError("The key in x-appliance-key is not valid any more")
        return key

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
        """Return the key of a request's ``authorization`` header (or of ``Bearer`` and an ``x-api-key``).

        Raises :class:`AuthenticationError`, with the same message for every invalid key. An unknown id costs the
        same hash and comparison as a known one.
        """
        if not sent:
            raise AuthenticationError("You sent no API key; send it as `Authorization: Bearer sk-...`")
        known = self.verified.get(sent)
        if known is not None and (known.expires_at is None or self._clock() < known.expires_at):
            # Verified since the keys last changed. This shortcut reveals nothing: it requires the whole key.
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
            raise AuthenticationError("This API key is not valid; request one from the operator of the service")
        if len(sent) == len(token) + 7:
            # Only the exact form: a key with more and more spaces must not fill the memory.
            self.verified[sent] = key
        return key
