"""Sessions of browsers: a cookie in the place of a key. Pure, except for the clock.

The value is ``v1.<key id>.<expiry>.<mac>``. The mac is HMAC-SHA256 with the secret of the site over version, key
id, expiry and the stored digest of the key. So nothing is stored for a session, and it ends with its key.

A browser adds a cookie to every request to this host, also to one that a foreign page causes. So a request with a
cookie needs proof that the page of this host sent it:

| method | ``Sec-Fetch-Site`` | ``Origin`` | result |
|---|---|---|---|
| any | ``same-origin`` | any | accepted |
| any | another value | any | rejected, but ``none`` is accepted to read |
| GET, HEAD | absent | any | accepted: the browser is old, and ``SameSite=Strict`` protects it |
| others | absent | this host | accepted |
| others | absent | another one, or absent | rejected |
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from hmac import compare_digest
from hmac import digest as keyed_digest

from appliance.errors import AuthenticationError, PermissionDeniedError
from appliance.gateway.auth import Authenticator
from appliance.store.models import Key

SECURE_NAME = b"__Host-session"
"""Name of the cookie over TLS: a browser accepts it from this host only, and no other host can set it."""

PLAIN_NAME = b"session"
"""Name of the cookie on loopback without TLS."""

SESSION_S = 30 * 24 * 3600
"""Seconds from the log-in to the end of a session."""

VISITOR = Key(id="", user="", digest=b"", created_at=0.0)
"""The caller of a request for the page without a session."""

_VALUE = re.compile(rb"v1\.([0-9a-f]{12})\.(\d{1,12})\.([0-9a-f]{64})")
_LOOPBACK = re.compile(rb"(localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[::1\])(:\d{1,5})?")
_READS = ("GET", "HEAD")


class BrowserSessions:
    """Makes cookies of keys, and finds the key of a cookie.

    Args:
        secret: The secret of the site.
        authenticator: The keys that are valid now.
        clock: Seconds since the epoch.
    """

    def __init__(self, secret: bytes, authenticator: Authenticator, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._authenticator = authenticator
        self._clock = clock

    def open(self, sent: str, headers: Mapping[bytes, bytes]) -> tuple[Key, int, bytes]:
        """Return the key that a log-in ``sent``, the end of the session, and the header line of its cookie.

        Raises :class:`AuthenticationError` for an invalid key, :class:`PermissionDeniedError` without TLS.
        """
        secure = is_secure(headers)
        if not secure and not _is_loopback(headers):
            message = "The page needs https, or a browser on this machine: a session would be readable on its way"
            raise PermissionDeniedError(message, code="https_required")
        key = self._authenticator.authenticate(b"Bearer " + sent.strip().encode("utf-8", "replace"))
        expiry = int(self._clock()) + SESSION_S
        value = b"v1.%s.%d.%s" % (key.id.encode(), expiry, self._mac(key, expiry))
        return key, expiry, _cookie_line(value, SESSION_S, secure=secure)

    def close(self, headers: Mapping[bytes, bytes]) -> bytes:
        """Return the header lines that remove the cookie."""
        return _cookie_line(b"", 0, secure=is_secure(headers))

    def key_of(self, headers: Mapping[bytes, bytes]) -> Key | None:
        """Return the key of the cookie in ``headers``; ``None`` without a cookie.

        Raises :class:`AuthenticationError` for a session that has ended.
        """
        value = _cookie(headers)
        if value is None:
            return None
        ended = AuthenticationError("Your session has ended; log in again", code="session_ended")
        found = _VALUE.fullmatch(value)
        if found is None:
            raise ended
        try:
            key = self._authenticator.by_id(found.group(1))
        except AuthenticationError:
            raise ended from None
        expiry = int(found.group(2))
        if not compare_digest(found.group(3), self._mac(key, expiry)) or self._clock() >= expiry:
            raise ended
        return key

    def authenticate(self, method: str, headers: Mapping[bytes, bytes]) -> Key | None:
        """Return the key of a request that has a cookie and no key; ``None`` without a cookie.

        Raises :class:`AuthenticationError` for a session that has ended, :class:`PermissionDeniedError` unless
        the page of this host sent the request.
        """
        if sends_key(headers):
            return None
        key = self.key_of(headers)
        if key is not None:
            require_same_origin(method, headers)
        return key

    def _mac(self, key: Key, expiry: int) -> bytes:
        text = b"v1.%s.%d." % (key.id.encode(), expiry)
        return keyed_digest(self._secret, text + key.digest, sha256).hex().encode()


def sends_key(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request names a key by itself, so that its cookie does not count."""
    authorization = headers.get(b"authorization", b"")
    return authorization[:7].lower() == b"bearer " or b"x-api-key" in headers or b"api-key" in headers


def require_same_origin(method: str, headers: Mapping[bytes, bytes]) -> None:
    """Raise :class:`PermissionDeniedError` unless the page of this host sent the request."""
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        if site == b"same-origin" or (site == b"none" and method in _READS):
            return
    elif method in _READS:
        return
    else:
        host = headers.get(b"host", b"")
        schemes = (b"https://",) if is_secure(headers) else (b"http://", b"https://")
        if host and headers.get(b"origin") in [scheme + host for scheme in schemes]:
            return
    raise PermissionDeniedError(
        "A session works on the page of this service only; other clients send the API key", code="foreign_origin"
    )


def is_secure(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether the browser uses TLS: the edge reports it, and otherwise the origin of a POST."""
    return headers.get(b"x-forwarded-proto") == b"https" or headers.get(b"origin", b"").startswith(b"https://")


def _is_loopback(headers: Mapping[bytes, bytes]) -> bool:
    return _LOOPBACK.fullmatch(headers.get(b"host", b"")) is not None


def _cookie(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the value of the session's cookie; the name without a prefix counts on loopback only."""
    # The first cookie of a name counts. A comma may be a part of a value, which another host of the domain can set.
    pairs = [pair.strip() for pair in headers.get(b"cookie", b"").split(b";")]
    named = dict(pair.partition(b"=")[::2] for pair in reversed(pairs))
    secure = named.get(SECURE_NAME)
    return named.get(PLAIN_NAME) if secure is None and _is_loopback(headers) else secure


def _cookie_line(value: bytes, seconds: int, *, secure: bool) -> bytes:
    name, flag = (SECURE_NAME, b"; Secure") if secure else (PLAIN_NAME, b"")
    return b"set-cookie: %s=%s; Path=/; Max-Age=%d; HttpOnly; SameSite=Strict%s\r\n" % (name, value, seconds, flag)
