"""The assistant as a process on its Unix socket, before a stand-in of the gateway, driven by the real client."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest

from appliance.contract.model import Site
from appliance.system.unix_socket import without_authorities
from tests.assistant.gateway_stand_in import GatewayStandIn, serve_stand_in
from tests.assistant.memory.conftest import memory_site
from tests.conftest import ROOT, wait_until
from tests.preloaded import ChildProcess, start_program

KEYS = {"ada": "a" * 12, "bob": "b" * 12}
LONG_S = 60.0
"""Seconds for work in the background on a busy machine."""


def caller_headers(user: str) -> dict[str, str]:
    return {"x-appliance-user": user, "x-appliance-key": KEYS.get(user, "c" * 12), "x-request-id": "r1"}


@dataclass
class FilesAssistant:
    """A running assistant, its folder, and the stand-in of its gateway."""

    folder: Path
    gateway: GatewayStandIn
    process: ChildProcess | None
    address: Path
    config: Path
    clients: dict[str, openai.OpenAI] = field(default_factory=dict)

    @property
    def contents(self) -> Path:
        return self.folder / "assistant" / "files"

    @property
    def log(self) -> str:
        return (self.folder / "assistant.log").read_text()

    def client(self, user: str = "ada") -> openai.OpenAI:
        """Return the client of ``user``, which :func:`files_assistant` closes."""
        if user not in self.clients:
            transport = httpx2.HTTPTransport(uds=str(self.address), verify=without_authorities())
            self.clients[user] = openai.OpenAI(
                base_url="http://assistant/v1",
                api_key="unused",
                default_headers=caller_headers(user),
                max_retries=0,
                timeout=LONG_S,
                http_client=httpx2.Client(transport=transport, timeout=LONG_S),
            )
        return self.clients[user]

    def http(self, user: str = "ada") -> httpx.Client:
        """Return a plain client, for requests that the SDK does not send."""
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.address), verify=without_authorities()),
            base_url="http://assistant",
            headers=caller_headers(user),
            timeout=LONG_S,
        )

    def start(self) -> None:
        with (self.folder / "assistant.log").open("ab") as output:
            argv = [sys.executable, "-m", "appliance", "assistant", "--config", str(self.config)]
            self.process = process = start_program(argv, output, {**os.environ, "PYTHONPATH": str(ROOT)})

        def ready() -> bool:
            if process.poll() is not None:
                pytest.fail(f"the assistant ended with {process.returncode}: {self.log[-2000:]}")
            with socket.socket(socket.AF_UNIX) as probe:
                found: int = probe.connect_ex(str(self.address))
                return found == 0

        wait_until(ready, "the start of the assistant", LONG_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=LONG_S)


def upload(client: openai.OpenAI, name: str, content: bytes | str) -> str:
    data = content.encode() if isinstance(content, str) else content
    return client.files.create(file=(name, data), purpose="user_data").id


def wait_for_file(client: openai.OpenAI, store: str, file: str) -> Any:
    """Return the file of the store once its processing has ended."""
    found: list[Any] = []

    def done() -> bool:
        found.append(client.vector_stores.files.retrieve(file, vector_store_id=store))
        return bool(found[-1].status != "in_progress")

    wait_until(done, f"the end of the work on {file}", LONG_S)
    return found[-1]


@contextmanager
def files_assistant(folder: Path, *, data: Path | None = None, **options: Any) -> Iterator[FilesAssistant]:
    """Run an assistant with an embedder; ``options`` are settings of the section assistant."""
    sockets = Path(tempfile.mkdtemp(prefix="acting"))
    stand_in = serve_stand_in(sockets)
    gateway = next(stand_in)
    site: Site = memory_site(
        folder,
        **{
            "socket": str(sockets / "assistant.sock"),
            "acting_socket": str(gateway.path),
            "data_dir": str(data or folder / "assistant"),
            **options,
        },
    )
    config = folder / "site.json"
    config.write_text(site.model_dump_json(exclude_defaults=True))
    running = FilesAssistant(folder, gateway, None, sockets / "assistant.sock", config)
    try:
        running.start()
        yield running
        assert running.stop() in (0, -signal.SIGTERM), running.log
        assert "Traceback" not in running.log, running.log
    finally:
        for client in running.clients.values():
            client.close()
        if running.process is not None and running.process.poll() is None:
            running.process.kill()
            running.process.wait()
        next(stand_in, None)
        shutil.rmtree(sockets)


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FilesAssistant]:
    with files_assistant(tmp_path_factory.mktemp("files")) as running:
        yield running
