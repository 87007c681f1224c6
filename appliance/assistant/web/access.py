"""The search engine and the fetcher of one assistant, and whether the site has them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from appliance.assistant.context import AssistantContext
from appliance.assistant.web.fetcher import FetcherClient, read_key
from appliance.assistant.web.metrics import WebMetrics
from appliance.assistant.web.searxng import SearxngClient
from appliance.assistant.web.tool import WebTool, web_functions
from appliance.contract.model import WebSearch
from appliance.errors import ConfigError


class WebAccess:
    """The clients of a site with web search; raises :class:`ConfigError` for a site without it."""

    def __init__(self, context: AssistantContext) -> None:
        if context.site.search is None:
            raise ConfigError("search: is absent; add a section [search]")
        self.settings: WebSearch = context.site.search
        self.metrics = context.shared(WebMetrics)
        key = self.settings.key_path(Path.cwd())
        self.searxng = SearxngClient(self.settings.url, self.settings.timeout_s)
        self.fetcher = (
            None
            if self.settings.fetcher_url is None
            else FetcherClient(
                self.settings.fetcher_url,
                None if key is None else read_key(key),
                timeout_s=self.settings.timeout_s,
                characters=self.settings.page_characters,
            )
        )

    def functions(self, tool: WebTool) -> list[dict[str, Any]]:
        """Return the functions that the model sees."""
        return web_functions(tool, self.settings)

    async def close(self) -> None:
        """Close all connections."""
        await self.searxng.close()
        if self.fetcher is not None:
            await self.fetcher.close()


@asynccontextmanager
async def web_access(context: AssistantContext) -> AsyncIterator[None]:
    """Keep the clients open within the block, if the site has web search."""
    if context.site.search is None:
        yield
        return
    access = context.shared(WebAccess)
    try:
        yield
    finally:
        await access.close()
