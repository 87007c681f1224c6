"""Background work of the gateway, from its start to its end: keys, canaries, swaps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Never

LOG = logging.getLogger(__name__)

RETRY_S = 1.0
"""Seconds after an unexpected error before the next step."""


async def keep_going(work: str, step: Callable[[], Awaitable[None]]) -> Never:
    """Run ``step`` repeatedly; log an unexpected error once until a step succeeds, and continue.

    An error that ends a task ends it silently: revoked keys would stay valid, a dead engine would stay open.

    Args:
        work: A name of the work for the log.
        step: One step, which waits by itself until the next one is due.
    """
    reported = False
    while True:
        try:
            await step()
            reported = False
        except Exception:
            # Logged with its traceback, then retried: the work has no caller that could handle it.
            if not reported:
                LOG.exception("%s failed; it will be retried", work)
            reported = True
            await asyncio.sleep(RETRY_S)
