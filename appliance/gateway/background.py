"""Work that runs beside the requests for as long as the gateway does: keys, canaries, swaps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Never

LOG = logging.getLogger(__name__)

RETRY_S = 1.0
"""Seconds after an unexpected error before the next step."""


async def keep_going(what: str, step: Callable[[], Awaitable[None]]) -> Never:
    """Run ``step`` again and again; an unexpected error is logged once until a step succeeds, and ends nothing.

    A task that ends by an error ends silently: revoked keys would stay valid, a dead engine would stay open.
    """
    reported = False
    while True:
        try:
            await step()
            reported = False
        except Exception:
            if not reported:
                LOG.exception("%s failed; it goes on", what)
            reported = True
            await asyncio.sleep(RETRY_S)
