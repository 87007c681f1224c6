"""The whole service on real vLLM, as `make up` starts it, shared by the tests of this folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

from appliance.models.prepare import TINY_NAME
from tests.conftest import wait_until
from tests.up_process import ENGINE_PYTHON, Up, start_up


def require_engine() -> None:
    """Fail the test if the engine's environment is missing."""
    if not ENGINE_PYTHON.exists():
        pytest.fail("there is no .venv-engine; run `make test`, or omit these tests with -m 'not vllm'")


class SharedService:
    """One service for all tests; a test may end it, and the next one gets a new service."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._running: Up | None = None

    def get(self) -> Up:
        """Return the service, and start it unless it runs."""
        if self._running is None or self._running.process.poll() is not None:
            self._running = self._started()
        return self._running

    def _started(self) -> Up:
        require_engine()
        folder = self._factory.mktemp("up")
        running = start_up(folder, "--model", "tiny", "--engine-python", str(ENGINE_PYTHON))

        def serves() -> bool:
            if running.process.poll() is not None:
                pytest.fail(f"appliance up ended with {running.process.returncode}:\n{running.output}")
            return "Ctrl-C stops everything" in running.output

        try:
            wait_until(serves, "make up serves", 300)
        except BaseException:
            running.process.send_signal(signal.SIGINT)
            running.process.wait(60)
            raise
        return running

    def stop(self) -> None:
        """Stop the service if it runs."""
        if self._running is not None:
            self._running.process.send_signal(signal.SIGINT)
            self._running.process.wait(60)


@pytest.fixture(scope="session")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedService]:
    service = SharedService(tmp_path_factory)
    yield service
    service.stop()


@pytest.fixture
def up(shared_service: SharedService) -> Up:
    return shared_service.get()


@pytest.fixture
def client(up: Up) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{up.url}/v1", api_key=up.key, max_retries=0, timeout=60) as openai:
        yield openai


@pytest.fixture
def model() -> str:
    return TINY_NAME


def prefer_the_http_side(up: Up) -> None:
    """Give every thread of vLLM's core the lowest priority.

    On two busy cores its HTTP side is otherwise not scheduled until the core has generated all tokens.
    """
    core = up.engine_pids()["VLLM::EngineCore"]
    for thread in Path(f"/proc/{core}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)


STREAM_TOKENS = 4000
"""Tokens of a long stream: a test acts on it while the engine generates."""


def running_stream(client: OpenAI, up: Up, model: str) -> Stream[ChatCompletionChunk]:
    """Return a stream that has begun and that the engine still generates, by its metrics."""
    prefer_the_http_side(up)
    for _ in range(30):
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Hello!"}],
            max_tokens=STREAM_TOKENS,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(stream)
        if up.engine_metric("vllm:num_requests_running") == 1:
            return stream
        stream.close()
    pytest.fail("thirty streams in a row ended before the engine's metrics showed one as running")
