"""The service of the client programs: gateway, engine, embedder and assistant, with the names of the pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.contract.load import load
from appliance.contract.model import PACKAGED_EMBEDDER
from appliance.engines import argv
from appliance.store.keys import KeyStore
from tests.assistant.running import assistant_process
from tests.conftest import ROOT, StartedProcess, http, start, start_mock, usage_rows, wait_until
from tests.ports import free_port
from tests.up_process import ENGINE_PYTHON

MODEL = "Qwen/Qwen3-0.6B"
EMBEDDER = "multilingual-embedder"
ROLE = "memory"
NAMES = (MODEL, EMBEDDER, "writer", ROLE)
"""The models and roles that the pages name; `make up` serves them if it reaches the model hub."""

CONTEXT = 65536
"""Tokens. The tiny tokenizer splits an agent's own prompt of 25,000 characters into as many tokens."""

ENGINE_START_S = 1200.0


@dataclass
class ServiceForClients:
    """A running service and its address."""

    url: str
    data: Path

    def new_key(self, user: str) -> str:
        """Return the key of a new user, which the gateway accepts."""
        store = KeyStore(self.data)
        key = store.create(user)
        store.close()
        wait_until(lambda: http(f"{self.url}/v1/models", key=key).status == 200, "the gateway accepts the key")
        return key

    def rows(self, user: str) -> list[dict[str, Any]]:
        """Return the usage rows of ``user``, oldest first."""
        return [row for row in usage_rows(self.data) if row["user"] == user]


@contextmanager
def service_for_clients(folder: Path, *, vllm: bool) -> Iterator[ServiceForClients]:
    """Run all processes in ``folder`` until the block ends; the model is tiny and random, or a mock."""
    folder.mkdir(parents=True, exist_ok=True)
    port, engine_port, embedder_port = free_port(), free_port(), free_port()
    own = {"data_dir": "state", "socket": "assistant.sock", "acting_socket": "acting.sock"}
    one: dict[str, Any] = {"host": "here", "device": "cpu", "concurrency": 16}
    chat = one | {"model": MODEL, "port": engine_port, "context": CONTEXT}
    source = "./mock"
    if vllm:
        source = str(_tiny_model(folder / "model"))
        options = {"enforce-eager": True, "enable-auto-tool-choice": True, "tool-call-parser": "hermes"}
        chat |= {"command": str(ENGINE_PYTHON), "kv_cache_gib": 1, "shutdown_timeout_s": 2, "options": options}
    else:
        chat["kind"] = "mock"
    embed = one | {"kind": "embedder", "model": EMBEDDER, "port": embedder_port, "context": 8192}
    config = folder / "site.json"
    config.write_text(
        json.dumps(
            {
                "version": 1,
                "hosts": {"here": {"memory_gib": 16}},
                "models": {MODEL: {"source": source}, EMBEDDER: {"source": PACKAGED_EMBEDDER, "task": "embed"}},
                "engines": {"chat": chat, "embed": embed},
                "roles": {"writer": {"model": MODEL}, ROLE: {"model": MODEL, "memory": ["files", "chats"]}},
                "assistant": {name: str(folder / path) for name, path in own.items()} | {"embedder": EMBEDDER},
                "gateway": {"port": port, "data_dir": str(folder / "var"), "ready_cache_s": 0.5},
            }
        )
    )
    KeyStore(folder / "var").close()
    with ExitStack() as stack:
        if vllm:
            engine = stack.enter_context(_vllm(folder, config, engine_port))
        else:
            engine = start_mock(folder / "engine.log", "--model", MODEL, port=engine_port)
            stack.callback(engine.stop)
        contract = load(config)
        built = argv.command(contract, argv.find(contract, "embed"), folder)
        stack.callback(start([*built.argv], embedder_port, folder / "embed.log", **built.environment).stop)
        command = [sys.executable, "-m", "appliance", "gateway", "--config", str(config)]
        gateway = start(command, port, folder / "gateway.log")
        stack.callback(gateway.stop)
        stack.enter_context(assistant_process(folder, config, engine))
        wait_until(lambda: http(f"{gateway.url}/ready").status == 200, "every engine is ready", ENGINE_START_S)
        yield ServiceForClients(gateway.url, folder / "var")


def _tiny_model(folder: Path) -> Path:
    """Make the tiny model with room for the prompts of agents; positions are computed, not learned."""
    for script in ("appliance/models/tiny_qwen3.py", "tests/client_programs/short_replies.py"):
        subprocess.run([str(ENGINE_PYTHON), str(ROOT / script), str(folder)], check=True, capture_output=True)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": CONTEXT}))
    return folder


@contextmanager
def _vllm(folder: Path, config: Path, port: int) -> Iterator[StartedProcess]:
    log = folder / "engine.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance", "engine", "exec", "chat", "--config", str(config)],
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    running = StartedProcess(port, process, log)

    def serves() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        with suppress(OSError):
            return http(f"{running.url}/health").status == 200
        return False

    try:
        wait_until(serves, "vLLM serves", ENGINE_START_S)
        yield running
    finally:
        process.terminate()
        process.wait(60)
