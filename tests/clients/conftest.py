"""A gateway with mock engines, and every client SDK."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.store.keys import KeyStore
from tests.clients.install import NODE, MissingError, install, node
from tests.clients.sdk import NodeSdk, NodeSdks, Sdk
from tests.conftest import RunningService, StartedProcess, serving, start_mock, wait_until

MODEL = "Org/Tiny-4B"
"""A name with a slash, like most names on the model hub."""

EMBEDDER = "Org/Embedder"


@dataclass
class SdkSite(RunningService):
    """A service whose second engine serves :data:`EMBEDDER`."""

    embedder: StartedProcess


@contextmanager
def sdk_site(folder: Path, **gateway: Any) -> Iterator[SdkSite]:
    """Run a gateway with mock engines of :data:`MODEL` and :data:`EMBEDDER`."""
    with ExitStack() as stack:
        engines = {}
        for name, model, task in (("chat", MODEL, "generate"), ("embed", EMBEDDER, "embed")):
            process = start_mock(folder.parent / f"{folder.name}-{name}.log", "--model", model, "--task", task)
            stack.callback(process.stop)
            engines[name] = process
        one = {"kind": "mock", "host": "here", "device": "cpu", "context": 4096, "concurrency": 64}
        site = {
            "models": {
                MODEL: {"source": "./fake", "cap_max_tokens": False},
                EMBEDDER: {"source": "./fake", "task": "embed"},
            },
            "engines": {
                "chat": one | {"model": MODEL, "port": engines["chat"].port},
                "embed": one | {"model": EMBEDDER, "port": engines["embed"].port},
            },
            # Errors of one test must not eject the only engine of the next.
            "gateway": {"breaker_failures": 1000, **gateway},
        }
        with serving(folder, **site) as service:
            service.engine.stop()
            yield SdkSite(**(vars(service) | {"engine": engines["chat"], "embedder": engines["embed"]}))


def new_keys(service: RunningService, users: list[str], **limits: Any) -> list[str]:
    """Create a key for each of ``users`` and wait until the gateway accepts them."""
    store = KeyStore(service.data)
    keys = [store.create(user, **limits) for user in users]
    store.close()
    # The gateway reads all keys at once, so if it accepts the last one, it accepts all.
    wait_until(
        lambda: service.get("/v1/models", key=keys[-1]).status == 200, f"the gateway accepts the keys of {users}", 5
    )
    return keys


def new_key(service: RunningService, user: str, **limits: Any) -> str:
    """Create one key, as :func:`new_keys` does."""
    return new_keys(service, [user], **limits)[0]


def revoke(service: RunningService, key: str) -> None:
    store = KeyStore(service.data)
    store.revoke(key)
    store.close()


class Tap:
    """A TCP proxy of ``port`` that records the bytes of the server, as a client receives them."""

    def __init__(self, port: int) -> None:
        self.seen = bytearray()
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections; open ones end with their peers."""
        # A plain close would leave the thread in accept().
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._copy, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self._copy, args=(server, client, self.seen), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket, seen: bytearray | None) -> None:
        with target:
            while True:
                try:
                    data = source.recv(65536)
                    target.sendall(data)
                except OSError:
                    return
                if not data:
                    # Wakes the thread of the other direction, which then closes the other socket.
                    with suppress(OSError):
                        target.shutdown(socket.SHUT_RDWR)
                    return
                if seen is not None:
                    seen += data


class Sdks(dict[str, Sdk]):
    """SDKs by name; a test that needs a missing one is skipped."""

    def __init__(self, reason: str) -> None:
        # Their import takes 4 s, so the processes that run other tests do without.
        from tests.clients.python_sdks import AnthropicSdk, OpenAISdk

        super().__init__({"openai-py": OpenAISdk(), "anthropic-py": AnthropicSdk()})
        self._reason = reason

    def __missing__(self, name: str) -> Sdk:
        pytest.skip(f"NOT CHECKED: {name}: {self._reason}")


@pytest.fixture(scope="session")
def sdks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdks]:
    """Every SDK that runs on this machine: without Node those of Python, except in CI, which fails."""
    try:
        program = node()
    except MissingError as error:
        if os.environ.get("CI"):
            pytest.fail(f"the Node SDKs cannot run: {error}")
        yield Sdks(str(error))
        return
    install()
    processes = NodeSdks(program, NODE / "main.mjs", tmp_path_factory.mktemp("node") / "node.log")
    found = Sdks("")
    found |= {
        "openai-node": NodeSdk("openai", processes),
        "anthropic-node": NodeSdk("anthropic", processes),
        "vercel": NodeSdk("vercel", processes),
    }
    try:
        yield found
    finally:
        processes.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SdkSite]:
    with sdk_site(tmp_path_factory.mktemp("clients") / "site") as service:
        yield service


@pytest.fixture(autouse=True)
def runs_here(request: pytest.FixtureRequest) -> None:
    """Skip a test whose SDK does not run on this machine."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    name = parameters["client"].sdk if "client" in parameters else parameters.get("sdk")
    if name is not None:
        request.getfixturevalue("sdks")[name]
