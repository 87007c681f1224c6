"""The headers of the CORS protocol (Fetch standard): they admit web pages of other origins. Pure.

A browser sends a preflight first, and hides every response that does not name the page's origin. Credentials of the
browser are never allowed: the API key is a header that the page sets by itself, so no cookie can be misused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from appliance.errors import PermissionDeniedError

EXPOSED = (
    "x-request-id, request-id, retry-after, x-queue-position, x-queue-wait-ms, x-max-tokens-capped, "
    "x-appliance-budget"
)
"""Headers of a response that a page may read, in addition to those that the standard always allows."""

ASKABLE = (
    b"authorization, content-type, x-api-key, idempotency-key, x-chat-id, x-session-id, x-openwebui-chat-id, "
    b"anthropic-version, anthropic-beta, anthropic-dangerous-direct-browser-access"
)
"""Headers of a request that are allowed if the preflight names none; otherwise those that it names."""

TOKENS = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+([ \t]*,[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
"""Header names (RFC 9110, 5.6.2) separated by commas: only these are copied into a response's head."""

METHODS = ("GET", "HEAD", "POST", "OPTIONS")
"""Methods of the paths that engines serve."""

MAX_AGE_S = 7200
"""Seconds for which a browser may cache a preflight; Chromium's maximum."""


class BrowserOrigins:
    """The origins whose pages may read responses: those in the list, or every origin with ``*``."""

    __slots__ = ("_every", "_lines")

    def __init__(self, origins: Iterable[str]) -> None:
        named = {origin.encode(): _lines(origin) for origin in origins}
        self._every = named.pop(b"*", None)
        self._lines = named

    @property
    def named(self) -> bool:
        """Whether any origin may read responses."""
        return self._every is not None or bool(self._lines)

    def headers(self, origin: bytes | None) -> bytes:
        """Return the header lines of any response to ``origin``; none if it is absent or not allowed."""
        if origin is None:
            return b""
        return self._every or self._lines.get(origin, b"")

    def preflight(self, headers: Mapping[bytes, bytes], methods: Iterable[str] = METHODS) -> bytes:
        """Return the header lines of a response to a preflight, in addition to those of :meth:`headers`.

        ``headers`` are those of the request, ``methods`` those of its path. Raises
        :class:`PermissionDeniedError` unless its origin is allowed.
        """
        origin = headers.get(b"origin", b"")
        if not self.headers(origin):
            shown = origin[:80].decode("latin1")
            raise PermissionDeniedError(
                f"Pages of the origin {shown!r} may not use this service; add it to gateway.browser_origins",
                code="origin_not_allowed",
            )
        asked = headers.get(b"access-control-request-headers", b"").strip()
        lines = b"access-control-allow-methods: %s\r\n" % ", ".join(methods).encode()
        lines += b"access-control-allow-headers: %s\r\n" % (asked if TOKENS.fullmatch(asked) else ASKABLE)
        lines += b"access-control-max-age: %d\r\n" % MAX_AGE_S
        if headers.get(b"access-control-request-private-network") == b"true":
            # A page from a public address requests one in a private network (Private Network Access).
            lines += b"access-control-allow-private-network: true\r\n"
        return lines


def _lines(origin: str) -> bytes:
    lines = f"access-control-allow-origin: {origin}\r\naccess-control-expose-headers: {EXPOSED}\r\n"
    if origin != "*":
        # A cache must not return the response for one origin to a page of another.
        lines += "vary: origin\r\n"
    return lines.encode()
