"""Writes the metrics of the assistant for node_exporter: the assistant listens on a Unix socket only.

A process that connects to that socket can act as any user, so no exporter gets access to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.assistant.background import in_background
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.metrics import MemoryMetrics
from appliance.assistant.store.vector_stores import VectorStoreRepository
from appliance.errors import StoreError
from appliance.system.metrics_file import write_metrics

LOG = logging.getLogger(__name__)
EVERY_S = 15.0


def write_once(context: AssistantContext, file: Path) -> None:
    """Replace ``file`` with the present metrics; raises :class:`StoreError` if database or file refuse."""
    metrics = context.shared(MemoryMetrics)
    pending = VectorStoreRepository(context.database).pending()
    metrics.files_waiting.set(sum(count for count, _ in pending.values()))
    metrics.last_look.set(time.time())
    write_metrics(file, metrics.registry)


@asynccontextmanager
async def writing_metrics(context: AssistantContext, file: Path) -> AsyncIterator[None]:
    """Write the metrics every :data:`EVERY_S` seconds within the block. The file outlives it: its age is a sign."""
    async with in_background(_write_forever(context, file), "the file of metrics"):
        yield


async def _write_forever(context: AssistantContext, file: Path) -> None:
    reported = False
    while True:
        try:
            await asyncio.to_thread(write_once, context, file)
            reported = False
        except StoreError as error:
            if not reported:
                LOG.warning("the metrics are not written: %s", error)
            reported = True
        await asyncio.sleep(EVERY_S)
