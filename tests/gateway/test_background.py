"""Background work continues after any error, and logs it once."""

from __future__ import annotations

import asyncio
import logging

import pytest

from appliance.gateway import background


async def test_a_failing_step_is_logged_once_and_retried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "RETRY_S", 0.0)
    steps = iter([None, ValueError("one"), KeyError("two"), None, OSError("three"), None])
    done = asyncio.Event()

    async def step() -> None:
        try:
            error = next(steps)
        except StopIteration:
            done.set()
            await asyncio.Event().wait()
            return
        await asyncio.sleep(0)
        if error is not None:
            raise error

    with caplog.at_level(logging.ERROR):
        task = asyncio.create_task(background.keep_going("the work", step))
        await asyncio.wait_for(done.wait(), 10)
    assert [record.message for record in caplog.records] == ["the work failed; it will be retried"] * 2
    assert all(record.exc_info for record in caplog.records)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
