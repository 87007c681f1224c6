"""The assistant on a TCP port, with the headers that the gateway adds."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
import uvicorn

from appliance.assistant.app import make_app
from appliance.assistant.context import AssistantContext
from appliance.assistant.main import open_context
from appliance.contract.model import Site
from tests.conftest import wait_until

KEYS = {"ada": "a" * 12, "bob": "b" * 12}


def headers(user: str) -> dict[str, str]:
    """Return the headers of a request of ``user`` that has passed the gateway."""
    return {"x-appliance-user": user, "x-appliance-key": KEYS.get(user, "0" * 12), "x-request-id": "r1"}


@dataclass
class RunningAssistant:
    """The address and the context of an assistant that serves in this process."""

    url: str
    context: AssistantContext

    def client(self, user: str) -> openai.OpenAI:
        """Return an SDK client that acts as ``user``."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="unused", default_headers=headers(user), max_retries=0, timeout=60
        )


@contextmanager
def running_assistant(folder: Path) -> Iterator[RunningAssistant]:
    """Serve an assistant with an empty database in ``folder``."""
    site = Site.model_validate(
        {
            "version": 1,
            "hosts": {"here": {"memory_gib": 8}},
            "models": {"fake": {"source": "./fake"}},
            "engines": {
                "chat": {
                    "kind": "mock",
                    "host": "here",
                    "model": "fake",
                    "device": "cpu",
                    "context": 4096,
                    "concurrency": 64,
                    "port": 8100,
                }
            },
            "gateway": {"port": 8000, "max_body_bytes": 1_000_000},
            "assistant": {},
        }
    )
    context = open_context(site, folder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        server = uvicorn.Server(uvicorn.Config(make_app(context), log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive(), "the start of the assistant", 60)
            yield RunningAssistant(f"http://127.0.0.1:{listener.getsockname()[1]}", context)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAssistant]:
    with running_assistant(tmp_path_factory.mktemp("assistant")) as started:
        yield started
