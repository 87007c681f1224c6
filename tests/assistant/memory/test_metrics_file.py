"""The file of metrics and the state for the doctor: their numbers are those of the database."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from appliance.assistant.api.state import read_state
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.embedding_client import EmbeddingClient
from appliance.assistant.memory.qdrant_sync import QdrantSync
from appliance.assistant.metrics_writer import write_once, writing_metrics
from appliance.assistant.store.passages import write_fingerprint
from appliance.assistant.store.schema import VECTOR_STORE_FILES, VECTOR_STORES
from appliance.errors import StoreError
from tests.assistant.memory.conftest import OpenContexts
from tests.assistant.memory.test_reindex import OLD
from tests.assistant.memory.test_search_api import TEXTS, fill, served
from tests.conftest import http, wait_until


def values(file: Path) -> dict[str, float]:
    families = text_string_to_metric_families(file.read_text())
    return {sample.name: sample.value for family in families for sample in family.samples}


async def waiting_file(context: AssistantContext) -> None:
    """Make a store with three passages, of which one file was attached again two hours ago."""
    await fill(context, "vs_1", TEXTS, attributes={"file-tea": {"year": 2025}})
    with context.database.writing() as connection:
        changed = {"status": "in_progress", "created_at": time.time() - 7200}
        connection.execute(update(VECTOR_STORE_FILES).values(changed))


async def test_the_file_has_what_waits(context: AssistantContext, tmp_path: Path) -> None:
    await waiting_file(context)
    file = tmp_path / "assistant.prom"
    write_once(context, file)
    found = values(file)
    assert found["appliance_assistant_files_waiting"] == 1
    assert abs(found["appliance_assistant_last_look_timestamp_seconds"] - time.time()) < 60
    assert found["appliance_assistant_finished_files_total"] == 0
    with pytest.raises(StoreError):
        write_once(context, tmp_path / "missing" / "assistant.prom")


async def test_a_refused_file_is_reported_once(
    context: AssistantContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with writing_metrics(context, tmp_path / "missing" / "assistant.prom"):
        await asyncio.to_thread(wait_until, lambda: "metrics are not written" in caplog.text, "the report", 60)


async def test_the_state_counts_stores_of_another_embedder(
    context: AssistantContext, contexts: OpenContexts
) -> None:
    await waiting_file(context)
    embedder, sync = context.shared(EmbeddingClient), context.shared(QdrantSync)
    state = read_state(context, embedder, sync)
    assert (state["stores_with_vectors"], state["stores_of_another_embedder"]) == (1, 0)
    assert (state["passages"], state["files_waiting"], state["qdrant"]) == (3, 1, None)
    assert state["oldest_file_s"] == pytest.approx(7200, abs=120)
    with context.database.writing() as connection:
        connection.execute(update(VECTOR_STORES).values(fingerprint=write_fingerprint(OLD)))
    assert read_state(context, embedder, sync)["stores_of_another_embedder"] == 1
    with served(contexts()) as url:
        shown = await asyncio.to_thread(http, f"{url}/state")
    assert shown.status == 200
    # Numbers and names of models only: no user, no text.
    assert "ada" not in json.dumps(shown.json)
