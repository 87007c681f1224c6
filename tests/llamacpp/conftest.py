"""A gateway whose engines are real llama.cpp servers, started as its children."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Response, RunningService, serving
from tests.llamacpp.server_command import program
from tests.llamacpp.tiny_gguf import write_tiny
from tests.ports import free_port

QWEN3_TOKENS = 151_646
"""Tokens of a vocabulary in which ``<|endoftext|>`` has its number in Qwen3."""


def real_engine(model: str, command: Path, **more: Any) -> dict[str, Any]:
    """Return the settings of a llama.cpp server on the processor for ``model``."""
    one = {"kind": "llamacpp", "host": "here", "model": model, "device": "cpu", "command": str(command)}
    own = {"context": 1024, "concurrency": 2, "port": free_port(), "residency": "on-demand", "kv_cache_gib": 0.1}
    return one | own | more


@contextmanager
def real_service(
    folder: Path,
    models: dict[str, Any],
    engines: dict[str, Any],
    gateway: dict[str, Any] | None = None,
    **more: Any,
) -> Iterator[RunningService]:
    """A gateway that starts ``engines`` by itself."""
    settings = {"engine_control": "child"} | (gateway or {})
    hosts = {"here": {"memory_gib": 8}}
    with serving(folder, hosts=hosts, models=models, engines=engines, gateway=settings, **more) as service:
        yield service


def request_chat(service: RunningService, model: str, text: str = "hi", **more: Any) -> Response:
    """Send a chat with temperature 0."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8}
    return service.post("/v1/chat/completions", body | more)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A gateway with a chat model, an embedder and a reranker."""
    folder = tmp_path_factory.mktemp("llama")
    chat, command = write_tiny(folder / "chat.gguf"), program(folder)
    embed = write_tiny(folder / "qwen3-embedding.gguf", "embed", vocabulary=QWEN3_TOKENS)
    rerank = write_tiny(folder / "rerank.gguf", "rerank")
    models = {
        "chat": {"source": str(chat)},
        "embed": {"source": str(embed), "task": "embed", "recipe": "qwen3-embedding"},
        "rerank": {"source": str(rerank), "task": "rerank", "recipe": "plain"},
    }
    engines = {
        "chat": real_engine("chat", command, options={"slot-save-path": str(folder)}),
        "embed": real_engine("embed", command, context=256),
        "rerank": real_engine("rerank", command, context=256),
    }
    with real_service(folder / "gateway", models, engines) as service:
        yield service
