"""Helpers of the tests that run a whole gateway: sites, requests and metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.store.keys import KeyStore
from tests.conftest import Response, RunningService, chat, serving, start_mock, wait_until

LONG = "fake: tokens=150 itl_ms=10 ttft_ms=10"
"""A prompt that makes the mock engine generate for about 1.5 s."""


def one_engine(slots: int) -> dict[str, Any]:
    """Return the settings of an engine for the model ``fake``, without its port."""
    return {"kind": "mock", "host": "here", "model": "fake", "device": "cpu", "context": 4096, "concurrency": slots}


@contextmanager
def narrow(folder: Path, slots: int = 2, **queue: Any) -> Iterator[tuple[RunningService, str]]:
    """A gateway before an engine of few slots, and the key of a second user."""
    engine = start_mock(folder.parent / f"{folder.name}.log")
    try:
        engines = {"chat": one_engine(slots) | {"port": engine.port}}
        with serving(folder, engines=engines, gateway={"queue": queue}) as service:
            service.engine.stop()
            service.engine = engine
            yield service, create_key(service, "bob")
    finally:
        engine.stop()


def create_key(service: RunningService, user: str, **more: Any) -> str:
    """Create a key of ``user`` and wait until the gateway accepts it."""
    store = KeyStore(service.data)
    key = store.create(user, **more)
    store.close()
    wait_until(lambda: service.get("/v1/models", key=key).status == 200, "the key is valid", 10)
    return key


def metric(service: RunningService, name: str) -> float:
    """Return the value of the gateway's metric ``name``, which may have labels."""
    prefix = f"appliance_gateway_{name} "
    lines = service.get("/metrics").body.decode().splitlines()
    return next(float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix))


def waiting(service: RunningService) -> float:
    """Return the number of waiting requests."""
    return metric(service, 'queue_length{model="fake"}')


def running(service: RunningService) -> float:
    """Return the number of slots in use."""
    return metric(service, 'engine_requests_in_flight{engine="chat"}')


def send(
    pool: ThreadPoolExecutor, service: RunningService, text: str, key: str | None = None, **more: Any
) -> Future[Response]:
    """Send a chat in another thread."""
    return pool.submit(service.post, "/v1/chat/completions", chat(text, **more), key)


def last_event(body: bytes) -> dict[str, Any]:
    """Return the last event of a stream that ended without ``[DONE]``."""
    assert b"[DONE]" not in body
    event: dict[str, Any] = json.loads(body.rstrip().rsplit(b"\n\n", 1)[-1].removeprefix(b"data: "))
    return event
