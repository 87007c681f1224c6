"""``POST /v1/chat/completions`` with a memory or with web search: the gateway passes only these chats on.

For a memory, the assistant sends the request to the gateway again, with the retrieved passages in a system message.
Everything else of it stays as it is. The header ``x-memory`` reports the outcome:

| value | meaning |
|---|---|
| used | the request has passages; the response has their annotations |
| none | nothing fits, or the store does not exist yet: the request is unchanged |
| off | the memory failed, for example its embedder: the request is unchanged and the chat has its response |

With ``web_search_options``, or with a role that has web search, the model may also search
(:mod:`appliance.assistant.turns.chat_search`). The search of a role is off for requests that it cannot serve.
These have several choices, the ``tool_choice`` none, or a function with the name of one of ours.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
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
from appliance.assistant.turns.chat_search import ChatSearch
from appliance.assistant.turns.prompt_fit import PromptFit
from appliance.assistant.web.access import WebAccess
from appliance.assistant.web.session import WebSession
from appliance.assistant.web.tool import NAMES, WebTool, read_web_options, web_tool_of
from appliance.errors import EngineFailedError, InvalidRequestError, RequestError

PATH = "/v1/chat/completions"
STATE_HEADER = "x-memory"
EVENT_STREAM = "text/event-stream"


class ChatMemory:
    """Chats with the memory of their role."""

    def __init__(self, context: AssistantContext) -> None:
        self._context = context
        self._memory = context.shared(RoleMemory)
        self._fit = PromptFit(context.site, context.inference)

    async def complete(self, caller: Caller, body: dict[str, Any], stack: AsyncExitStack) -> Response:
        """Return the response to ``body``; ``stack`` closes the request to the gateway."""
        tool = self._web_tool(body)
        found = await self._retrieve(caller, body)
        sent = body if not found.text else {**body, "messages": with_context(body["messages"], found.text)}
        if tool is not None:
            return await self._search(caller, sent, tool, found, stack, plain=body)
        try:
            response = await stack.enter_async_context(self._open(sent, caller))
        except RequestError as error:
            if not found.text or error.status != 400:
                raise
            # The context may be what exceeds the engine's limit.
            found = RetrievedContext("off")
            response = await stack.enter_async_context(self._open(body, caller))
        headers = _headers(response.headers, found)
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

    async def _search(
        self,
        caller: Caller,
        body: dict[str, Any],
        tool: WebTool,
        found: RetrievedContext,
        stack: AsyncExitStack,
        *,
        plain: dict[str, Any],
    ) -> Response:
        """Return the response to ``body``, whose model may search the web; ``plain`` is without the memory."""
        completion = ChatSearch(
            inference=self._context.inference,
            caller=caller,
            body=body,
            session=WebSession(self._context.shared(WebAccess), tool, caller),
            fit=self._fit,
            first=len(found.cited) + 1,
            memory=_annotations(found),
        )
        try:
            return await self._searched(completion, found, stack)
        except RequestError as error:
            if not found.text or error.status != 400 or completion.round > 1:
                raise
            # The context may be what exceeds the engine's limit.
            return await self._search(caller, plain, tool, RetrievedContext("off"), stack, plain=plain)

    async def _searched(self, completion: ChatSearch, found: RetrievedContext, stack: AsyncExitStack) -> Response:
        if completion.body.get("stream") is True:
            response = await completion.open(stack)
            headers = _headers(response.headers, found)
            kind = response.headers.get("content-type", EVENT_STREAM)
            # The stream closes the request from here on.
            return StreamingResponse(completion.stream(response, stack.pop_all()), headers=headers, media_type=kind)
        whole, first_headers = await completion.whole()
        content = json.dumps(whole, ensure_ascii=False).encode("utf-8", "replace")
        return Response(content, headers=_headers(first_headers, found), media_type="application/json")

    def _web_tool(self, body: dict[str, Any]) -> WebTool | None:
        """Return the web search of ``body``. Raises :class:`InvalidRequestError` if it requests one in vain."""
        site = self._context.site
        options = body.get("web_search_options")
        requested = None if options is None or site.search is None else read_web_options(options)
        tool = web_tool_of(requested, site, str(body.get("model")))
        if tool is None or not isinstance(body.get("messages"), list):
            return None
        problem = _unsearchable(body)
        if problem and requested is not None:
            raise InvalidRequestError(f"web_search_options: {problem}", param="web_search_options")
        return None if problem else tool

    def _open(self, body: dict[str, Any], caller: Caller) -> AbstractAsyncContextManager[httpx.Response]:
        return self._context.inference.open(PATH, body, caller)

    async def _retrieve(self, caller: Caller, body: dict[str, Any]) -> RetrievedContext:
        messages = body.get("messages")
        queries = chat_queries(messages) if isinstance(messages, list) and messages else []
        return await self._memory.retrieve(caller, str(body.get("model")), queries)


def _unsearchable(body: dict[str, Any]) -> str:
    """Return the reason for which a chat cannot have web search; empty if it can."""
    if body.get("n") not in (None, 1):
        return "allows one choice; remove n"
    if body.get("tool_choice") == "none":
        return "excludes the tool_choice none"
    tools = body.get("tools")
    functions = [one.get("function") for one in tools if isinstance(one, dict)] if isinstance(tools, list) else []
    taken = {str(one.get("name")) for one in functions if isinstance(one, dict)} & NAMES
    return f"the name {min(taken)!r} is that of a function of ours; rename yours" if taken else ""


def _headers(received: Mapping[str, str], found: RetrievedContext) -> dict[str, str]:
    """Return the headers of the response: those of the gateway, and the state of the memory."""
    passed = {name: value for name, value in received.items() if name.startswith("x-")}
    return {STATE_HEADER: found.state} | {
        name: value for name, value in passed.items() if name not in ("x-request-id", STATE_HEADER)
    }


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
