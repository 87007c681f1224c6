"""The assistant before a stand-in of the gateway: a Unix socket whose connections end at the mock engine.

The stand-in forwards bytes, so every request of the assistant reaches the engine as it was sent.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
from openai import OpenAI

from appliance.assistant.caller import KEY_HEADER, USER_HEADER
from appliance.system.unix_socket import address
from tests.conftest import ROOT, START_S, StartedProcess, a_site, http, start_mock, wait_until
from tests.ports import free_port

KEY_ID = "0123456789ab"


class ForwardingSocket:
    """Accepts connections on a Unix socket and forwards them to a TCP port."""

    def __init__(self, path: Path, port: int) -> None:
        self._port = port
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with address(path) as name:
            self._listener.bind(name)
        self._listener.listen(128)
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Close the listener and all connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                engine = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()
                continue
            self._open |= {client, engine}
            left = [2]
            for source, target in ((client, engine), (engine, client)):
                threading.Thread(target=self._copy, args=(source, target, left), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, left: list[int]) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        left[0] -= 1
        if not left[0]:
            for one in (source, target):
                self._open.discard(one)
                one.close()


@dataclass
class AssistantUnderTest:
    """A running assistant, its engine, and clients of its socket."""

    folder: Path
    config: Path
    engine: StartedProcess
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "assistant.sock"

    @property
    def log(self) -> Path:
        return self.folder / "assistant.log"

    def client(self, user: str = "ada") -> OpenAI:
        """Return a client of the official SDK, as the gateway passes its requests on."""
        return OpenAI(
            base_url="http://assistant/v1",
            api_key="none",
            default_headers={USER_HEADER: user, KEY_HEADER: KEY_ID},
            http_client=self.http(user),
            max_retries=0,
        )

    def http(self, user: str = "ada") -> httpx.Client:
        """Return a plain client."""
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)),
            base_url="http://assistant/v1",
            headers={USER_HEADER: user, KEY_HEADER: KEY_ID},
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
            self.process = subprocess.Popen(
                [sys.executable, "-m", "appliance", "assistant", "--config", str(self.config)],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self.wait_ready(self.process)

    def wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the assistant accepts requests; ``process`` must not end."""

        def ready() -> bool:
            assert process.poll() is None, self.log.read_text()[-2000:]
            with socket.socket(socket.AF_UNIX) as probe, address(self.socket) as name:
                if probe.connect_ex(name) != 0:
                    return False
            with suppress(httpx.HTTPError), self.http() as client:
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


@dataclass
class ForkedAssistant(AssistantUnderTest):
    """An assistant that is forked from a process with all its modules."""

    child: int = 0

    def start(self) -> None:
        if self.process is None:
            with self.log.open("ab") as output:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "tests.assistant.forking", str(self.config)],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"start\n")
        self.process.stdin.flush()
        self.child = int(self.process.stdout.readline())
        self.wait_ready(self.process)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        self._end(signal.SIGTERM)
        assert self.process is not None
        self.process.communicate(timeout=60)
        return self.process.returncode

    def _end(self, number: signal.Signals) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        os.kill(self.child, number)
        assert self.process.stdout.readline() == b"ended\n"


@contextmanager
def assistant_running(
    folder: Path, *engine_options: str, forked: bool = False, **site: Any
) -> Iterator[AssistantUnderTest]:
    """Run an assistant before the stand-in and a mock engine."""
    engine = start_mock(folder / "engine.log", *engine_options)
    config = folder / "site.json"
    sections = {"data_dir": "data", "socket": "assistant.sock", "acting_socket": "acting.sock"}
    roles = {"poet": {"model": "fake"}}
    sections = {key: str(folder / value) for key, value in sections.items()}
    config.write_text(
        json.dumps(a_site(free_port(), engine.port, folder, assistant=sections, **({"roles": roles} | site)))
    )
    gateway = ForwardingSocket(folder / "acting.sock", engine.port)
    try:
        with assistant_process(folder, config, engine, forked=forked) as running:
            yield running
    finally:
        gateway.close()
        engine.stop()


@contextmanager
def assistant_process(
    folder: Path, config: Path, engine: StartedProcess, *, forked: bool = False
) -> Iterator[AssistantUnderTest]:
    """Run an assistant; its log must have no traceback at the end."""
    running = (ForkedAssistant if forked else AssistantUnderTest)(folder, config, engine)
    try:
        running.start()
        yield running
        running.stop()
        assert "Traceback" not in running.log.read_text(), running.log.read_text()[-4000:]
    finally:
        if running.process is not None and running.process.poll() is None:
            running.process.kill()
            running.process.wait()
