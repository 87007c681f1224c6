"""``GET /state`` on the assistant's socket, for the doctor; the gateway does not pass this path on.

It has numbers and reasons only: no name of a user, no text.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from sqlalchemy import func, select

from appliance.assistant.context import AssistantContext
from appliance.assistant.embedding import embedder_fingerprint
from appliance.assistant.memory.embedding_client import EmbeddingClient
from appliance.assistant.memory.qdrant_sync import QdrantSync
from appliance.assistant.memory.waiting_chats import WaitingChats
from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.assistant.store.passages import read_fingerprint
from appliance.assistant.store.schema import PASSAGES, VECTOR_STORES
from appliance.assistant.store.vector_stores import VectorStoreRepository
from appliance.errors import ConfigError, EngineUnavailableError


def state_router(context: AssistantContext) -> APIRouter:
    """Return the endpoint of the state."""
    router = APIRouter()
    embedder = context.shared(EmbeddingClient)
    sync = context.shared(QdrantSync)

    @router.get("/state")
    async def state() -> dict[str, Any]:
        return await asyncio.to_thread(read_state, context, embedder, sync)

    return router


def read_state(context: AssistantContext, embedder: EmbeddingClient, sync: QdrantSync) -> dict[str, Any]:
    """Return the numbers that the doctor judges. Raises :class:`StoreError` if the database cannot be read."""
    now = time.time()
    current = _fingerprint(context, embedder)
    stores = VECTOR_STORES.c
    with context.database.reading() as connection:
        rows = connection.execute(select(stores.fingerprint).where(stores.fingerprint.is_not(None))).scalars().all()
        passages = connection.scalar(select(func.count()).select_from(PASSAGES)) or 0
    pending = VectorStoreRepository(context.database).pending()
    first = min((first for _, first in pending.values()), default=now)
    return {
        "embedder": context.settings.embedder,
        "stores_with_vectors": len(rows),
        "stores_of_another_embedder": sum(read_fingerprint(row) != current for row in rows) if current else None,
        "passages": passages,
        "files_waiting": sum(count for count, _ in pending.values()),
        "oldest_file_s": max(0.0, now - first),
        "chats_waiting": context.shared(WaitingChats).count(now),
        "qdrant": sync.report(),
    }


def _fingerprint(context: AssistantContext, embedder: EmbeddingClient) -> EmbedderFingerprint | None:
    """Return the present embedder; None if there is none, or if it is not identified yet."""
    if embedder.model is None:
        return None
    try:
        return embedder.fingerprint()
    except (EngineUnavailableError, ConfigError):
        pass
    try:
        return embedder_fingerprint(context.site, embedder.model, Path.cwd())
    except ConfigError:
        return None
