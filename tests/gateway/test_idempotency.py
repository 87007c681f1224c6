"""Recorded answers: kept for their time, and no more of them than memory allows."""

from __future__ import annotations

import pytest

from appliance.errors import IdempotencyError, InvalidRequestError
from appliance.gateway import idempotency
from appliance.gateway.idempotency import MAX_BYTES, OVERHEAD, IdempotencyCache


class Repeatable:
    """An exchange whose answer may be given again."""

    repeatable = True


def finished(tapes: IdempotencyCache, key: bytes, size: int = 0) -> None:
    tape = tapes.record("ada", key, "/v1/x", b"body")
    tape.exchange = Repeatable()  # type: ignore[assignment]
    tape.answer(200, bytes(size))


def test_an_answer_is_kept_for_its_time() -> None:
    now = 0.0
    tapes = IdempotencyCache(600.0, lambda: now)
    finished(tapes, b"k")
    now = 600.0
    assert tapes.find("ada", b"k", "/v1/x", b"body") is not None
    assert tapes.find("bob", b"k", "/v1/x", b"body") is None, "it counts within its API key"
    with pytest.raises(IdempotencyError):
        tapes.find("ada", b"k", "/v1/y", b"body")
    now = 600.1
    assert tapes.find("ada", b"k", "/v1/x", b"body") is None
    with pytest.raises(InvalidRequestError):
        tapes.find("ada", b"", "/v1/x", b"body")


def test_short_answers_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MAX_BYTES", 100 * OVERHEAD)
    tapes = IdempotencyCache(600.0, lambda: 0.0)
    running = tapes.record("ada", b"running", "/v1/x", b"body")
    for number in range(1000):
        finished(tapes, b"%d" % number)
    assert len(tapes._entries) == 101, "a hundred, and the one that is not complete"
    assert tapes.find("ada", b"running", "/v1/x", b"body") is running
    assert tapes.find("ada", b"999", "/v1/x", b"body") is not None, "the newest stay"
    assert tapes.find("ada", b"0", "/v1/x", b"body") is None
    assert MAX_BYTES > 100 * OVERHEAD
