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
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import httpx
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from appliance.assistant.api.json_body import read_json
from appliance.assistant.api.requests import Calling, disconnected
from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.chat_context import (
    StreamAnnotator,
    annotate,
    chat_queries,
    with_context,
)
from appliance.assistant.memory.role_context import RetrievedContext, RoleMemory
from appliance.errors import EngineFailedError, InvalidRequestError, RequestError

PATH = "/v1/chat/completions"
STATE_HEADER = "x-memory"


class ChatMemory:
    """Chats with the memory of their role."""

    def __init__(self, context: AssistantContext) -> None:
        self._context = context
        self._memory = context.shared(RoleMemory)

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
                whole = json.dumps(annotate(json.loads(content), _annotations(found)), ensure_ascii=False)
            except ValueError as error:
                raise EngineFailedError("the gateway's response is not JSON") from error
            content = whole.encode("utf-8", "replace")
        return Response(content, headers=headers, media_type=kind or "application/json")

    def _open(self, body: dict[str, Any], caller: Caller) -> AbstractAsyncContextManager[httpx.Response]:
        return self._context.inference.open(PATH, body, caller)

    async def _retrieve(self, caller: Caller, body: dict[str, Any]) -> RetrievedContext:
        messages = body.get("messages")
        queries = chat_queries(messages) if isinstance(messages, list) and messages else []
        return await self._memory.retrieve(caller, str(body.get("model")), queries)


def _annotations(found: RetrievedContext) -> list[dict[str, Any]]:
    return [one.annotation(index=one.number - 1) | {"number": one.number} for one in found.cited]


async def _stream(
    response: httpx.Response, found: RetrievedContext, closing: AsyncExitStack
) -> AsyncIterator[bytes]:
    annotator = StreamAnnotator(_annotations(found)) if found.cited else None
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
    limit = context.site.gateway.max_body_bytes

    @router.post(PATH)
    async def complete(request: Request, caller: Calling) -> Response:
        body = await read_json(request, limit)
        if not body:
            raise InvalidRequestError("The body is empty; send a chat.", param="body")
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
