"""``POST /v1/chat/completions`` of a role with a memory: the gateway passes only these chats on.

The assistant sends the request to the gateway again, with the retrieved passages in a system message. Everything
else of it stays as it is. The header ``x-memory`` reports the outcome:

| value | meaning |
|---|---|
| used | the request has passages; the response has their annotations |
| none | nothing fits, or the store does not exist yet: the request is unchanged |
| off | the memory failed, for example its embedder: the request is unchanged and the chat has its response |
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import httpx
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from appliance.assistant.api.requests import Calling, as_request_error, disconnected
from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.chat_context import (
    StreamAnnotator,
    annotate,
    chat_queries,
    citations,
    context_block,
    with_context,
)
from appliance.assistant.memory.search import MAX_STORES, StoreSearch
from appliance.assistant.store.stores import memory_stores
from appliance.errors import ApplianceError, EngineFailedError, InvalidRequestError, RequestError

LOG = logging.getLogger(__name__)

PATH = "/v1/chat/completions"
PASSAGES = 8
"""Most passages of a context."""
STATE_HEADER = "x-memory"


@dataclass(frozen=True, slots=True)
class RetrievedContext:
    """The result of the memory for one chat: its state for the header, a message, citations."""

    state: str
    text: str = ""
    cited: tuple[dict[str, Any], ...] = ()


class ChatMemory:
    """Chats with the memory of their role."""

    def __init__(self, context: AssistantContext) -> None:
        self._context = context
        self._search = context.shared(StoreSearch)

    async def complete(self, caller: Caller, body: dict[str, Any], stack: AsyncExitStack) -> Response:
        """Return the response to ``body``; ``stack`` closes the request to the gateway."""
        found = await self._retrieve(caller, body)
        sent = body if not found.text else {**body, "messages": with_context(body["messages"], found.text)}
        try:
            response = await stack.enter_async_context(self._open(sent, caller))
        except RequestError as error:
            if not found.text or error.status != 400:
                raise
            # The context may be what exceeds the engine's limit.
            found = RetrievedContext("off")
            response = await stack.enter_async_context(self._open(body, caller))
        headers = {STATE_HEADER: found.state}
        headers |= {
            name: value
            for name, value in response.headers.items()
            if name.startswith("x-") and name not in ("x-request-id", STATE_HEADER)
        }
        kind = response.headers.get("content-type", "")
        if kind.startswith("text/event-stream"):
            # The stream closes the request from here on.
            closing = stack.pop_all()
            return StreamingResponse(_stream(response, found, closing), headers=headers, media_type=kind)
        try:
            content = await response.aread()
        except httpx.HTTPError as error:
            raise EngineFailedError("the gateway closed the connection early; its log has more") from error
        if found.cited:
            try:
                whole = json.dumps(annotate(json.loads(content), found.cited), ensure_ascii=False)
            except ValueError as error:
                raise EngineFailedError("the gateway's response is not JSON") from error
            content = whole.encode("utf-8", "replace")
        return Response(content, headers=headers, media_type=kind or "application/json")

    def _open(self, body: dict[str, Any], caller: Caller) -> AbstractAsyncContextManager[httpx.Response]:
        return self._context.inference.open(PATH, body, caller)

    async def _retrieve(self, caller: Caller, body: dict[str, Any]) -> RetrievedContext:
        """Return the context of a chat; a failure of the memory is a state, never an error of the chat."""
        role = self._context.site.roles.get(str(body.get("model")))
        messages = body.get("messages")
        queries = chat_queries(messages) if isinstance(messages, list) and messages else []
        if role is None or not role.memory or not queries:
            return RetrievedContext("none")
        now = datetime.now(UTC)
        try:
            stores = await asyncio.to_thread(self._stores, caller.user, role.memory)
            if not stores:
                return RetrievedContext("none")
            outcome = await self._search.search(caller, stores[:MAX_STORES], queries, limit=PASSAGES, now=now)
        except ApplianceError as error:
            code = as_request_error(error).code
            LOG.warning("request %s: the memory is off for this chat: %s", caller.request_id, code)
            return RetrievedContext("off")
        engines = self._context.site.engines.values()
        longest = min((engine.context for engine in engines if engine.model == role.model), default=0)
        block = context_block(outcome.passages, longest, now=now)
        if not block.citations:
            return RetrievedContext("none")
        return RetrievedContext("used", block.text, tuple(citations(block, outcome.passages)))

    def _stores(self, tenant: str, sources: tuple[str, ...]) -> list[str]:
        with self._context.database.reading() as connection:
            return memory_stores(connection, tenant, sources)


async def _stream(
    response: httpx.Response, found: RetrievedContext, closing: AsyncExitStack
) -> AsyncIterator[bytes]:
    annotator = StreamAnnotator(found.cited) if found.cited else None
    async with closing:
        try:
            async for piece in response.aiter_raw():
                yield piece if annotator is None else annotator.feed(piece)
        except httpx.HTTPError as error:
            raise EngineFailedError("the gateway closed the connection early; its log has more") from error
        if annotator is not None:
            yield annotator.end()


def chat_completions_router(context: AssistantContext) -> APIRouter:
    """Return the endpoint of chats with a memory."""
    router = APIRouter()
    memory = context.shared(ChatMemory)

    @router.post(PATH)
    async def complete(request: Request, caller: Calling) -> Response:
        body = read_body(await request.body())
        async with AsyncExitStack() as stack:
            response = asyncio.create_task(memory.complete(caller, body, stack))
            leaving = asyncio.create_task(disconnected(request))
            try:
                await asyncio.wait({response, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if not response.done():
                    # The client left: the end of this block stops the engine.
                    return Response(status_code=499)
                return response.result()
            finally:
                for task in (response, leaving):
                    task.cancel()
                await asyncio.gather(response, leaving, return_exceptions=True)

    return router


def read_body(content: bytes) -> dict[str, Any]:
    """Return the JSON object in ``content``.

    Raises :class:`InvalidRequestError` if it is not one, or cannot be written as JSON again.
    """
    try:
        found = json.loads(content, parse_constant=_refuse)
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("the body is not valid JSON") from error
    if not isinstance(found, dict):
        raise InvalidRequestError("the body is not a JSON object")
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
