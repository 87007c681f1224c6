"""A side box with embeddings behind a gateway of its own: its death takes away its models only."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningService, StartedProcess, chat, serving, start, start_mock, wait_until
from tests.gateway.running.test_http_engines import http_engine

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
VECTORS: dict[str, Any] = {"source": "./v", "task": "embed"}
TEXT = {"model": "vectors", "input": ["a text"]}


def mock_engine(model: str, port: int) -> dict[str, Any]:
    """Return the settings of a mock engine that runs on ``port`` already."""
    own = {"host": "here", "kind": "mock", "device": "cpu", "context": 4096, "concurrency": 4}
    return {**own, "model": model, "port": port}


@pytest.fixture
def vectors(tmp_path: Path) -> Iterator[StartedProcess]:
    """The engine of the side box."""
    engine = start_mock(tmp_path / "vectors.log", "--task", "embed", "--model", "vectors")
    yield engine
    engine.stop()


@pytest.fixture
def side(tmp_path: Path, vectors: StartedProcess) -> Iterator[RunningService]:
    engines = {"embed": mock_engine("vectors", vectors.port)}
    with serving(tmp_path / "side", models={"vectors": VECTORS}, engines=engines) as running:
        yield running


@pytest.fixture
def front(tmp_path: Path, side: RunningService) -> Iterator[RunningService]:
    """The GPU server: a chat model of its own, embeddings of the side box."""
    key = tmp_path / "side-key"
    key.write_text(side.key + "\n")
    chat_engine = start_mock(tmp_path / "chat.log")
    engines = {
        "chat": mock_engine("fake", chat_engine.port),
        "side": http_engine("vectors", side.gateway.port, key),
    }
    models = {"fake": {"source": "./fake"}, "vectors": VECTORS}
    try:
        with serving(tmp_path / "front", engines=engines, models=models) as running:
            yield running
    finally:
        chat_engine.stop()


def statuses(front: RunningService) -> tuple[int, int]:
    """Return the statuses of a chat and of an embedding."""
    return front.post(CHAT, chat("fake: tokens=1")).status, front.post(EMBEDDINGS, TEXT).status


def test_embeddings_of_the_side_box_are_billed_to_the_key_of_this_gateway(
    front: RunningService, side: RunningService
) -> None:
    response = front.post(EMBEDDINGS, TEXT)
    assert [len(one["embedding"]) for one in response.json["data"]] == [4]
    ours, theirs = front.wait_rows(1)[0], side.wait_rows(1)[0]
    assert (ours["model"], theirs["model"]) == ("vectors", "vectors")
    assert ours["prompt_tokens"] == theirs["prompt_tokens"] > 0


def test_a_dead_side_box_takes_away_its_models_only(front: RunningService, side: RunningService) -> None:
    assert statuses(front) == (200, 200)
    side.gateway.process.send_signal(signal.SIGKILL)
    side.gateway.process.wait(10)
    wait_until(lambda: front.get("/ready").json["engines"]["side"] != "ready", "the gateway sees it", 20)
    assert statuses(front) == (200, 503)
    refused = front.post(EMBEDDINGS, TEXT)
    assert refused.json["error"]["code"] == "engine_unavailable"
    assert int(refused.headers["retry-after"]) >= 1
    argv = [sys.executable, "-m", "appliance", "gateway", "--config", str(side.config)]
    side.gateway = start(argv, side.gateway.port, side.data / "gateway.log")
    wait_until(lambda: statuses(front) == (200, 200), "the side box serves again", 30)


def test_a_dead_engine_of_the_side_box_is_503_as_well(
    front: RunningService, side: RunningService, vectors: StartedProcess
) -> None:
    assert statuses(front) == (200, 200)
    vectors.process.send_signal(signal.SIGKILL)
    vectors.process.wait(10)
    wait_until(lambda: side.get("/ready").status == 503, "the side box sees it", 20)
    status = front.post(EMBEDDINGS, TEXT).status
    assert status == 503
    assert front.post(CHAT, chat("fake: tokens=1")).status == 200
