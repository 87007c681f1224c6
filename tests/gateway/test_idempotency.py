"""Recorded answers: kept for their time, and no more of them than memory allows."""

from __future__ import annotations

import pytest

from appliance.errors import IdempotencyError, InvalidRequestError
from appliance.gateway import idempotency
from appliance.gateway.idempotency import MAX_BYTES, OVERHEAD, IdempotencyCache


class Repeatable:
    """An exchange whose answer may be given again."""

    repeatable = True


def finished(cache: IdempotencyCache, key: bytes, size: int = 0) -> None:
    recording = cache.record("ada", key, "/v1/x", b"body")
    recording.request = Repeatable()  # type: ignore[assignment]
    recording.respond(200, bytes(size))


def test_an_answer_is_kept_for_its_time() -> None:
    now = 0.0
    cache = IdempotencyCache(600.0, lambda: now)
    finished(cache, b"k")
    now = 600.0
    assert cache.find("ada", b"k", "/v1/x", b"body") is not None
    assert cache.find("bob", b"k", "/v1/x", b"body") is None, "it counts within its API key"
    with pytest.raises(IdempotencyError):
        cache.find("ada", b"k", "/v1/y", b"body")
    now = 600.1
    assert cache.find("ada", b"k", "/v1/x", b"body") is None
    with pytest.raises(InvalidRequestError):
        cache.find("ada", b"", "/v1/x", b"body")


def test_short_answers_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MAX_BYTES", 100 * OVERHEAD)
    cache = IdempotencyCache(600.0, lambda: 0.0)
    running = cache.record("ada", b"running", "/v1/x", b"body")
    for number in range(1000):
        finished(cache, b"%d" % number)
    assert len(cache) == 101, "a hundred, and the one that is not complete"
    assert cache.find("ada", b"running", "/v1/x", b"body") is running
    assert cache.find("ada", b"999", "/v1/x", b"body") is not None, "the newest stay"
    assert cache.find("ada", b"0", "/v1/x", b"body") is None
    assert MAX_BYTES > 100 * OVERHEAD
