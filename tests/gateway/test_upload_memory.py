"""The memory of uploads: bounded, and released with the last reference."""

from __future__ import annotations

import pytest

from appliance.errors import QueueFullError
from appliance.gateway.upload_memory import UploadMemory


def test_shares_together_stay_within_the_memory() -> None:
    memory = UploadMemory(100)
    first, second = memory.reserve(60), memory.reserve(40)
    with pytest.raises(QueueFullError) as caught:
        memory.reserve(1)
    assert (caught.value.code, caught.value.status) == ("uploads_busy", 503)
    assert caught.value.retry_after
    first.shrink(10)
    first.shrink(50)
    assert memory.used == 50, "a share never grows"
    memory.reserve(50).release()
    second.release()
    second.release()
    assert memory.used == 10


def test_one_upload_over_the_memory_is_accepted_alone() -> None:
    memory = UploadMemory(100)
    share = memory.reserve(150)
    with pytest.raises(QueueFullError):
        memory.reserve(1)
    share.release()
    assert memory.used == 0


def test_a_share_that_is_dropped_is_released() -> None:
    memory = UploadMemory(100)
    share = memory.reserve(70)
    assert memory.used == 70
    del share
    assert memory.used == 0
