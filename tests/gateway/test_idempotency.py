"""Recorded responses: kept for their time, and bounded in memory."""

from __future__ import annotations

import gc
import weakref

import pytest

from appliance.errors import IdempotencyError, InvalidRequestError
from appliance.gateway import idempotency
from appliance.gateway.idempotency import MAX_BYTES, OVERHEAD, IdempotencyCache, RecordedResponse


class FakeRequest:
    """A request whose response may be repeated, and which writes to ``client``."""

    repeatable = True

    def __init__(self, client: RecordedResponse) -> None:
        self.client = client


def finished(cache: IdempotencyCache, key: bytes, size: int = 0) -> None:
    recording = cache.record("ada", key, path="/v1/x", body=b"body")
    recording.request = FakeRequest(recording)
    recording.respond(200, bytes(size))


def test_a_response_is_kept_for_its_time() -> None:
    now = 0.0
    cache = IdempotencyCache(600.0, lambda: now)
    finished(cache, b"k")
    now = 600.0
    assert cache.find("ada", b"k", path="/v1/x", body=b"body") is not None
    assert cache.find("bob", b"k", path="/v1/x", body=b"body") is None, "a key is valid within its caller"
    with pytest.raises(IdempotencyError):
        cache.find("ada", b"k", path="/v1/y", body=b"body")
    now = 600.1
    assert cache.find("ada", b"k", path="/v1/x", body=b"body") is None
    with pytest.raises(InvalidRequestError):
        cache.find("ada", b"", path="/v1/x", body=b"body")


def test_short_responses_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MAX_BYTES", 100 * OVERHEAD)
    cache = IdempotencyCache(600.0, lambda: 0.0)
    running = cache.record("ada", b"running", path="/v1/x", body=b"body")
    for number in range(1000):
        finished(cache, b"%d" % number)
    assert len(cache) == 101, "100, and the incomplete one"
    assert cache.find("ada", b"running", path="/v1/x", body=b"body") is running
    assert cache.find("ada", b"999", path="/v1/x", body=b"body") is not None, "the newest stay"
    assert cache.find("ada", b"0", path="/v1/x", body=b"body") is None
    assert MAX_BYTES > 100 * OVERHEAD


def test_an_expired_recording_is_freed_without_the_garbage_collector() -> None:
    """Each keeps a response in memory, and the collector runs after thousands of requests only."""
    now = 0.0
    cache = IdempotencyCache(600.0, lambda: now)
    recording = cache.record("ada", b"k", path="/v1/x", body=b"body")
    recording.request = FakeRequest(recording)
    recording.respond(200, b"{}")
    freed = weakref.ref(recording)
    del recording
    gc.disable()
    try:
        now = 601.0
        assert cache.find("ada", b"k", path="/v1/x", body=b"body") is None
        assert freed() is None
    finally:
        gc.enable()
