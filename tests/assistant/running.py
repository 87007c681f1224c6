"""The assistant behind the gateway, before a mock engine: three processes.

Most tests connect to the assistant's own socket, with the headers that the gateway adds. Its requests for inference
pass the gateway's acting socket, as on a host.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
from openai import OpenAI

from appliance.assistant.caller import KEY_HEADER, USER_HEADER
from appliance.system.unix_socket import address, without_authorities
from tests.conftest import ROOT, START_S, RunningService, StartedProcess, http, serving, wait_until
from tests.gateway.running.conftest import create_key
from tests.preloaded import ChildProcess, start_program

ROLES = {"poet": {"model": "fake", "system_prompt": "Rhyme."}}


def key_id(key: str) -> str:
    """Return the public part of a key."""
    return key.split("-")[1]


@dataclass
class AssistantUnderTest:
    """A running assistant, its engine, and clients of its socket."""

    folder: Path
    config: Path
    engine: StartedProcess
    process: ChildProcess | None = None
    key_ids: dict[str, str] = field(default_factory=dict)
    """The id of a key by user."""
    defect: str = ""
    """A defect of :mod:`tests.assistant.sabotage` for the next start."""

    @property
    def socket(self) -> Path:
        return self.folder / "assistant.sock"

    @property
    def log(self) -> Path:
        return self.folder / "assistant.log"

    def headers(self, user: str) -> dict[str, str]:
        """Return the headers that the gateway adds to a request of ``user``."""
        return {USER_HEADER: user, KEY_HEADER: self.key_ids[user.partition("/")[0]]}

    def client(self, user: str = "ada") -> OpenAI:
        """Return a client of the official SDK, as the gateway passes its requests on."""
        return OpenAI(
            base_url="http://assistant/v1",
            api_key="none",
            default_headers=self.headers(user),
            http_client=self.http(user),
            max_retries=0,
        )

    def http(self, user: str = "ada") -> httpx.Client:
        """Return a plain client."""
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket), verify=without_authorities()),
            base_url="http://assistant/v1",
            headers=self.headers(user),
            timeout=60,
            trust_env=False,
        )

    def stats(self) -> dict[str, int]:
        counters: dict[str, int] = http(self.engine.url + "/stats").json
        return counters

    def last_body(self) -> dict[str, Any]:
        """Return the last request that the engine got."""
        body: dict[str, Any] = json.loads(http(self.engine.url + "/last").json["body"])
        return body

    def release(self) -> None:
        """Let the stream that holds go on."""
        http(self.engine.url + "/release", body={})

    def start(self) -> None:
        """Start the process and wait until it accepts requests."""
        with self.log.open("ab") as output:
            words = ["tests.assistant.sabotage", self.defect] if self.defect else ["appliance", "assistant"]
            argv = [sys.executable, "-m", *words, "--config", str(self.config)]
            self.process = start_program(argv, output, {**os.environ, "PYTHONPATH": str(ROOT)})
        self.wait_ready(self.process)

    def wait_ready(self, process: ChildProcess) -> None:
        """Wait until the assistant accepts requests; ``process`` must not end."""

        def ready() -> bool:
            assert process.poll() is None, self.log.read_text()[-2000:]
            with socket.socket(socket.AF_UNIX) as probe, address(self.socket) as name:
                if probe.connect_ex(name) != 0:
                    return False
            transport = httpx.HTTPTransport(uds=str(self.socket), verify=without_authorities())
            with suppress(httpx.HTTPError), httpx.Client(transport=transport) as client:
                return client.get("http://assistant/health").status_code == 200
            return False

        wait_until(ready, "the start of the assistant", START_S)

    def kill(self) -> None:
        """End the process without a chance to store anything."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Stop the process in order and return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextmanager
def assistant_running(folder: Path, *engine_options: str, **site: Any) -> Iterator[AssistantUnderTest]:
    """Run an assistant behind a gateway and a mock engine. Its clients connect to its socket."""
    with whole_service(folder, *engine_options, **site) as (_, assistant):
        yield assistant


@contextmanager
def whole_service(
    folder: Path, *engine_options: str, **site: Any
) -> Iterator[tuple[RunningService, AssistantUnderTest]]:
    """Run a mock engine, a gateway and an assistant, with keys of ``ada`` and ``bob``."""
    sections = {"data_dir": "data", "socket": "assistant.sock", "acting_socket": "acting.sock"}
    settings = {key: str(folder / value) for key, value in sections.items()}
    settings |= site.pop("assistant", {})
    with (
        serving(folder, *engine_options, assistant=settings, **({"roles": ROLES} | site)) as service,
        assistant_process(folder, service.config, service.engine) as assistant,
    ):
        assistant.key_ids |= {"ada": key_id(service.key), "bob": key_id(create_key(service, "bob"))}
        yield service, assistant


@contextmanager
def assistant_process(folder: Path, config: Path, engine: StartedProcess) -> Iterator[AssistantUnderTest]:
    """Run an assistant; its log must have no traceback at the end."""
    running = AssistantUnderTest(folder, config, engine)
    try:
        running.start()
        yield running
        running.stop()
        assert "Traceback" not in running.log.read_text(), running.log.read_text()[-4000:]
    finally:
        if running.process is not None and running.process.poll() is None:
            running.process.kill()
            running.process.wait()
