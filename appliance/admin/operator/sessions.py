"""Sessions of the operator's browsers, in memory: a restart of the admin API ends them all.

| state | event | next state |
|---|---|---|
| none | the token matches | open |
| none | the token does not match, five times within a minute | locked for the rest of that minute |
| open | a request | open; its idle time begins again |
| open | log-out, half an hour without a request, or twelve hours | none |
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass

from appliance.errors import AuthenticationError, RateLimitError

IDLE_S, LONGEST_S = 1800.0, 12 * 3600.0
"""Seconds without a request, and seconds in all, after which a session ends."""

MOST_SESSIONS = 32
"""Open sessions; one more log-in ends the session with the longest idle time."""

TRIES, WINDOW_S = 5, 60.0
"""Failed log-ins within so many seconds, after which further ones are rejected."""


@dataclass(slots=True)
class _Session:
    opened: float
    used: float


class OperatorSessions:
    """The open sessions for one admin token.

    Args:
        token: The admin token.
        clock: Seconds of a clock that is never set back.
    """

    def __init__(self, token: str, clock: Callable[[], float]) -> None:
        self._token = token.encode()
        self._clock = clock
        self._sessions: dict[bytes, _Session] = {}
        self._failures: list[float] = []
        # Routes run in threads.
        self._lock = threading.Lock()

    def log_in(self, token: str) -> str:
        """Return the secret of a new session.

        Raises :class:`AuthenticationError` for another token, :class:`RateLimitError` after too many of them.
        """
        now = self._clock()
        with self._lock:
            self._failures = [at for at in self._failures if now - at < WINDOW_S]
            if len(self._failures) >= TRIES:
                raise RateLimitError(
                    "Too many log-ins failed; wait a minute", retry_after=WINDOW_S - (now - self._failures[0])
                )
            if not secrets.compare_digest(token.encode(), self._token):
                self._failures.append(now)
                raise AuthenticationError("The admin token is not valid")
            self._expire(now)
            while len(self._sessions) >= MOST_SESSIONS:
                del self._sessions[min(self._sessions, key=lambda one: self._sessions[one].used)]
            secret = secrets.token_urlsafe(32)
            self._sessions[_digest(secret)] = _Session(now, now)
            return secret

    def valid(self, secret: str) -> bool:
        """Return whether ``secret`` names an open session, and begin its idle time again."""
        now = self._clock()
        with self._lock:
            self._expire(now)
            session = self._sessions.get(_digest(secret))
            if session is None:
                return False
            session.used = now
            return True

    def log_out(self, secret: str) -> None:
        """End the session of ``secret``, if there is one."""
        with self._lock:
            self._sessions.pop(_digest(secret), None)

    def _expire(self, now: float) -> None:
        self._sessions = {
            digest: one
            for digest, one in self._sessions.items()
            if now - one.used < IDLE_S and now - one.opened < LONGEST_S
        }


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
