"""``GET /v1/page/conversations/{id}``: the items of a conversation as the chat page shows them.

An item of the assistant has ``html``, made here from the stored text. So the page needs no parser of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fastapi import APIRouter, Response

from appliance.assistant.api.pages import Limit, Order
from appliance.assistant.api.requests import Calling, not_found
from appliance.assistant.context import AssistantContext
from appliance.assistant.ids import is_id
from appliance.assistant.item_form import shown_form
from appliance.assistant.page.rendering import MessageRendering
from appliance.assistant.store.conversations import ConversationStore

RESULTS = frozenset({"file_search_call.results"})
MOST_PASSAGES = 20
PASSAGE_CHARACTERS = 4000
PLAIN_CHARACTERS = 200_000
"""Characters of reasoning, and of a message of the user, that the page shows."""


def messages_router(context: AssistantContext) -> APIRouter:
    """Return the endpoint of the messages; its lifespan ends the threads that render."""
    rendering = context.shared(MessageRendering)
    store = ConversationStore(context.database)

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        try:
            yield
        finally:
            rendering.close()

    router = APIRouter(prefix="/v1/page", lifespan=lifespan)

    @router.get("/conversations/{identifier}")
    async def messages(
        identifier: str, caller: Calling, after: str | None = None, limit: Limit = 40, order: Order = "desc"
    ) -> Response:
        if not is_id(identifier):
            raise not_found("conversation", identifier)
        if after is not None and not is_id(after):
            raise not_found("item", after)
        conversation = await asyncio.to_thread(store.get, caller.user, identifier)
        page = await asyncio.to_thread(store.items, caller.user, identifier, after=after, limit=limit, order=order)
        shown = await asyncio.gather(*(_shown(rendering, shown_form(item, RESULTS)) for item in page.data))
        body = {
            "object": "page.messages",
            "conversation": {"id": conversation.id, "metadata": conversation.metadata},
            "data": [one for one in shown if one is not None],
            "last_id": page.data[-1]["id"] if page.data else None,
            "has_more": page.has_more,
        }
        return Response(msgspec.json.encode(body), media_type="application/json")

    return router


async def _shown(rendering: MessageRendering, item: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the parts of ``item`` that the page shows; ``None`` for an item that it does not show."""
    common = {"id": item["id"], "type": item["type"], "status": item.get("status")}
    if item["type"] == "message" and item.get("role") in ("user", "assistant"):
        parts = [part for part in item.get("content") or () if isinstance(part, Mapping)]
        text = "\n\n".join(str(part.get("text") or part.get("refusal") or "") for part in parts)
        if item["role"] == "user":
            images = sum(part.get("type") == "input_image" for part in parts)
            return {**common, "role": "user", "text": text[:PLAIN_CHARACTERS], "images": images}
        citations = [one for part in parts for one in part.get("annotations") or ()]
        html = await rendering.html(text)
        return {**common, "role": "assistant", "text": text, "html": html, "annotations": citations}
    if item["type"] == "reasoning":
        parts = [part for part in item.get("content") or item.get("summary") or () if isinstance(part, Mapping)]
        return {**common, "text": "\n\n".join(str(part.get("text", "")) for part in parts)[:PLAIN_CHARACTERS]}
    if item["type"] == "file_search_call":
        results = [one for one in item.get("results") or () if isinstance(one, Mapping)][:MOST_PASSAGES]
        passages = [
            {name: str(one.get(name) or "")[:PASSAGE_CHARACTERS] for name in ("file_id", "filename", "text")}
            for one in results
        ]
        return {**common, "queries": item.get("queries") or [], "passages": passages}
    if item["type"] in ("function_call", "web_search_call"):
        return {**common, "name": str(item.get("name") or item["type"])[:100]}
    return None
