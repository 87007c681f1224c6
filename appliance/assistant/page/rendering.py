"""Renders messages outside the event loop, and keeps the results of the last ones.

Two threads render; a text that takes long delays other texts and no stream. A reader waits at most
:data:`PATIENCE_S` for the HTML of a text, then gets it without markup.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

from appliance.assistant.context import AssistantContext
from appliance.assistant.page.markdown import plain_html, render_message

THREADS = 2
PATIENCE_S = 10.0
MOST_KEPT_BYTES = 16 * 2**20
"""Characters of HTML that are kept."""


class MessageRendering:
    """The threads that render, and the HTML of the last texts by their digest."""

    def __init__(self, context: AssistantContext) -> None:
        del context
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="render")
        self._kept: OrderedDict[bytes, str] = OrderedDict()
        self._size = 0

    async def html(self, text: str) -> str:
        """Return ``text`` as HTML that a page may show as it is."""
        key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept
        try:
            async with asyncio.timeout(PATIENCE_S):
                made = await asyncio.get_running_loop().run_in_executor(self._pool, render_message, text)
        except TimeoutError:
            return plain_html(text)
        self._keep(key, made)
        return made

    def close(self) -> None:
        """End the threads; texts that wait are not rendered."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _keep(self, key: bytes, made: str) -> None:
        if key not in self._kept and len(made) < MOST_KEPT_BYTES // 8:
            self._kept[key] = made
            self._size += len(made)
            while self._size > MOST_KEPT_BYTES:
                self._size -= len(self._kept.popitem(last=False)[1])
