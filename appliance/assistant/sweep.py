"""The sweep: expired files, expired vector stores, and the remains of uploads that died."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from appliance.assistant.background import in_background
from appliance.assistant.context import AssistantContext
from appliance.assistant.file_contents import FileContents
from appliance.assistant.store.files import FileRepository
from appliance.assistant.store.vector_stores import VectorStoreRepository
from appliance.errors import StoreError

LOG = logging.getLogger(__name__)
EVERY_S = 60.0
UPLOAD_IDLE_S = 3600.0
"""Seconds without a write after which an upload is dead."""


def sweep(context: AssistantContext, now: float, *, upload_idle_s: float = UPLOAD_IDLE_S) -> None:
    """Remove what expired before ``now``. Raises :class:`StoreError` if the disk or the database refuses."""
    files, contents = FileRepository(context.database), FileContents(context.folder)
    while expired := files.expired(now):
        for tenant, file_id in expired:
            contents.remove(file_id, partial(files.remove, tenant, file_id))
    VectorStoreRepository(context.database).clear_expired(now)
    contents.sweep(files.exists, idle_s=upload_idle_s)


@asynccontextmanager
async def sweeping(context: AssistantContext) -> AsyncIterator[None]:
    """Sweep at the start, when no upload runs, and then every minute within the block."""
    await _sweep_once(context, 0.0)
    async with in_background(_sweep_forever(context), "the sweep"):
        yield


async def _sweep_forever(context: AssistantContext) -> None:
    while True:
        await asyncio.sleep(EVERY_S)
        await _sweep_once(context, UPLOAD_IDLE_S)


async def _sweep_once(context: AssistantContext, upload_idle_s: float) -> None:
    try:
        await asyncio.to_thread(sweep, context, time.time(), upload_idle_s=upload_idle_s)
    except StoreError as error:
        LOG.warning("the sweep failed: %s", error)
