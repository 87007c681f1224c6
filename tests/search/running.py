"""A small web for tests, in a thread: the hostile site, the real fetcher before it, and SearXNG's interface.

SearXNG itself, with its settings, is in test_searx.py; this stand-in has the responses that a real one cannot give
on demand.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Form, Response

from appliance.search.fetcher_app import make_app
from tests.conftest import wait_until
from tests.search.hostile_site import HostileSite, hostile_site

FETCHER_KEY = "f" * 32


@dataclass
class SmallWeb:
    """Site, search engine and fetcher: their addresses and what they received."""

    site: HostileSite
    search_url: str = ""
    fetcher_url: str = ""
    queries: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    unresponsive: list[list[str]] = field(default_factory=list)
    status: int = 200
    body: bytes | None = None

    def result(self, path: str, title: str, text: str = "", host: str = "site.example") -> dict[str, Any]:
        """Return a result as SearXNG has it."""
        return {"url": self.site.url(path, host), "title": title, "content": text, "engine": "small"}

    def reset(self) -> None:
        """Forget all requests; results are those of one search that found two pages."""
        self.queries.clear()
        self.site.seen.clear()
        self.status, self.body, self.unresponsive = 200, None, []
        self.results = [
            self.result("/page", "Capitals & rivers", "Rome is the capital of Italy."),
            self.result("/json", "Data", "A file with data."),
        ]


def _search_app(web: SmallWeb) -> FastAPI:
    app = FastAPI()

    @app.post("/search")
    async def search(q: str = Form(), format: str = Form()) -> Any:  # noqa: A002 - the name of SearXNG's field
        web.queries.append(q)
        assert format == "json"
        if web.body is not None or web.status != 200:
            return Response(web.body or b"", status_code=web.status)
        return {
            "query": q,
            "results": web.results,
            "unresponsive_engines": web.unresponsive,
            "number_of_results": 0,
        }

    return app


@asynccontextmanager
async def _served(app: Any) -> AsyncIterator[str]:
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    loop = asyncio.create_task(server.main_loop())
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await loop
        await server.shutdown()


@contextmanager
def small_web() -> Iterator[SmallWeb]:
    """Run site, search engine and fetcher."""
    started: list[SmallWeb] = []
    ready, stop = threading.Event(), threading.Event()

    async def run() -> None:
        async with hostile_site() as site:
            web = SmallWeb(site)
            async with (
                _served(_search_app(web)) as search,
                _served(make_app(site.reader(), FETCHER_KEY)) as fetcher,
            ):
                web.search_url, web.fetcher_url = search, fetcher
                web.reset()
                started.append(web)
                ready.set()
                await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        wait_until(lambda: ready.is_set() or not thread.is_alive(), "the small web", 60)
        yield started[0]
    finally:
        stop.set()
        thread.join()
