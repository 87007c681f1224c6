"""The assistant as an application: its endpoints, its background work, its start and its stop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, FastAPI

from appliance import __version__
from appliance.assistant.api.chat_completions import chat_completions_router
from appliance.assistant.api.conversations import conversations_router
from appliance.assistant.api.description import ERRORS, DescribedApp
from appliance.assistant.api.files import file_routes
from appliance.assistant.api.metrics import metrics_router
from appliance.assistant.api.requests import add_error_handlers
from appliance.assistant.api.responses import responses_router
from appliance.assistant.api.search import search_router
from appliance.assistant.api.state import state_router
from appliance.assistant.api.vector_stores import vector_store_routes
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.chats import chat_memory
from appliance.assistant.memory.ingestion import ingesting
from appliance.assistant.memory.qdrant_sync import qdrant_syncing
from appliance.assistant.metrics_writer import writing_metrics
from appliance.assistant.page.messages import messages_router
from appliance.assistant.page.shell import shell_router
from appliance.assistant.sweep import sweeping
from appliance.assistant.web.access import web_access

ROUTERS: tuple[Callable[[AssistantContext], APIRouter], ...] = (
    conversations_router,
    responses_router,
    file_routes,
    vector_store_routes,
    search_router,
    chat_completions_router,
    metrics_router,
    state_router,
    messages_router,
    shell_router,
)
"""The endpoints, one function a group; each gets the context of the running assistant."""

WORK: tuple[Callable[[AssistantContext], AbstractAsyncContextManager[None]], ...] = (
    sweeping,
    ingesting,
    chat_memory,
    qdrant_syncing,
    web_access,
)
"""Work in the background, from the start to the stop."""


def make_app(context: AssistantContext, metrics: Path | None = None) -> FastAPI:
    """Return the application; it closes the database and all connections when it stops.

    ``metrics`` is the file that gets its metrics for node_exporter.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(context.database.close)
            stack.push_async_callback(context.inference.close)
            for work in WORK:
                await stack.enter_async_context(work(context))
            if metrics is not None:
                await stack.enter_async_context(writing_metrics(context, metrics))
            yield

    app = DescribedApp(title="Assistant", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    for router in ROUTERS:
        app.include_router(router(context), responses=ERRORS)

    @app.get("/health")
    def health() -> dict[str, str]:
        """Return 200 while the assistant runs."""
        return {"status": "ok"}

    add_error_handlers(app)
    return app
