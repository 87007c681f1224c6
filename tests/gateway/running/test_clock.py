"""Jumps of the wall clock (NTP after a cold boot, an incorrect time zone) do not affect deadlines and durations."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.store.keys import KeyStore
from tests.conftest import chat, http, serving, start, wait_until

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
DAY = 86400


def test_streams_limits_and_expiry_over_jumps_of_days(tmp_path: Path) -> None:
    if LIBRARY is None:
        pytest.skip("NOT CHECKED: there is no libfaketime; apt-get install faketime")
    offset = tmp_path / "offset"
    offset.write_text("+0d")
    with (
        serving(tmp_path / "clock", limits={"requests_per_minute": 1000}) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        store = KeyStore(service.data)
        brief = store.create("eve", expires_at=time.time() + DAY)
        store.close()
        service.gateway.stop()
        argv = [sys.executable, "-m", "appliance", "gateway", "--config", str(service.config)]
        faked = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        service.gateway = start(argv, service.gateway.port, service.gateway.log, **faked)

        def status(key: str) -> int:
            return http(f"{service.url}/v1/chat/completions", body=chat("fake: tokens=1"), key=key).status

        assert status(brief) == 200
        stream = pool.submit(service.post, "/v1/chat/completions", chat("fake: tokens=60 itl_ms=20", stream=True))
        wait_until(lambda: service.stats()["active"] == 1, "it runs", 5)
        offset.write_text("+2d")
        assert status(brief) == 401, "at the new time it has expired"
        offset.write_text("-300d")
        assert status(brief) == 200
        assert status(service.key) == 200
        assert stream.result(20).body.endswith(b"data: [DONE]\n\n")
        rows = service.wait_rows(4)
        assert all(0 <= row["duration_ms"] < 60_000 for row in rows)
        assert {row["outcome"] for row in rows} == {"ok"}
        os.kill(service.gateway.process.pid, signal.SIGTERM)
        assert service.gateway.process.wait(20) == 0
