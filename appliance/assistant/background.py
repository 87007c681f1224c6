"""Work in the background for as long as a block runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

LOG = logging.getLogger(__name__)


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run ``work`` within the block; its end cancels the work and waits for it.

    Nothing awaits the work before that, so an error that ends it is logged at once, with its ``name``.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(partial(_report, name))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _report(name: str, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        LOG.error("%s has stopped", name, exc_info=error)
