"""A whole service with state: gateway, mock engine, packaged embedder and assistant, each a real process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from appliance.contract.load import load
from appliance.contract.model import PACKAGED_EMBEDDER
from appliance.engines import argv
from appliance.store.keys import KeyStore
from tests.assistant.running import assistant_process
from tests.conftest import RunningService, serving, start, start_mock, wait_until
from tests.ports import free_port

MODEL = "fake"
EMBEDDER = "small-embed"
ROLE = "librarian"
"""A role whose memory is the vector store ``handbook`` of each user."""
ORIGIN = "app://obsidian.md"
"""The only origin whose pages may call the gateway."""


@dataclass
class ServiceWithState(RunningService):
    """A running service whose assistant listens on ``assistant_socket``."""

    assistant_socket: Path

    def client(self, key: str | None = None) -> OpenAI:
        """Return a client of the official SDK; the caller closes it."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0, timeout=60)

    def new_user(self, name: str) -> str:
        """Return the key of a new user, which the gateway accepts."""
        store = KeyStore(self.data)
        key = store.create(name)
        store.close()
        wait_until(lambda: self.get("/v1/models", key=key).status == 200, "the gateway accepts the key")
        return key


@contextmanager
def service_with_state(
    folder: Path, *, model: str = MODEL, database_url: str | None = None, **gateway: Any
) -> Iterator[ServiceWithState]:
    """Run all four processes until the block ends; logs must have no traceback."""
    paths = {"data_dir": "state", "socket": "assistant.sock", "acting_socket": "acting.sock"}
    own = {name: str(folder / path) for name, path in paths.items()}
    one = {"kind": "mock", "host": "here", "device": "cpu", "context": 4096, "concurrency": 64}
    with ExitStack() as stack:
        site: dict[str, Any] = {
            "models": {model: {"source": "./fake"}, EMBEDDER: {"source": PACKAGED_EMBEDDER, "task": "embed"}},
            "roles": {ROLE: {"model": model, "memory": ["handbook"]}},
            "assistant": {**own, "embedder": EMBEDDER, "database_url": database_url},
            "gateway": {"browser_origins": [ORIGIN], **gateway},
        }
        folder.mkdir(parents=True, exist_ok=True)
        engine, port = start_mock(folder / "mock.log", "--model", model), free_port()
        stack.callback(engine.stop)
        engines = {
            "chat": {**one, "model": model, "port": engine.port},
            "embed": {**one, "kind": "embedder", "model": EMBEDDER, "context": 8192, "port": port},
        }
        service = stack.enter_context(serving(folder, engines=engines, **site))
        service.engine.stop()
        config = load(service.config)
        built = argv.command(config, argv.find(config, "embed"), folder)
        stack.callback(start([*built.argv], port, folder / "embedder.log", **built.environment).stop)
        stack.enter_context(assistant_process(folder, service.config, engine))
        known = vars(service) | {"engine": engine, "assistant_socket": Path(own["socket"])}
        yield ServiceWithState(**known)
