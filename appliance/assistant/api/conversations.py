"""`/v1/conversations`: OpenAI's endpoints, and ours for the list, the end and the export of conversations."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response

from appliance.assistant.api.description import CONVERSATION_BODY, ITEMS_BODY, METADATA_BODY
from appliance.assistant.api.json_body import read_json, refuse_unknown
from appliance.assistant.api.pages import Limit, as_list
from appliance.assistant.api.requests import Calling, not_found
from appliance.assistant.context import AssistantContext
from appliance.assistant.ids import is_id
from appliance.assistant.item_form import MAX_ITEMS, shown_form, stored_form
from appliance.assistant.metadata import read_metadata
from appliance.assistant.store.conversations import ConversationExport, ConversationStore, StoredConversation
from appliance.errors import InvalidRequestError

EXPORT_VERSION = 1

Direction = Annotated[Literal["asc", "desc"], Query()]
SearchText = Annotated[str, Query(max_length=1000)]


def conversations_router(context: AssistantContext) -> APIRouter:
    """Return the endpoints of conversations."""
    router = APIRouter(prefix="/v1/conversations")
    store = ConversationStore(context.database)
    limit = context.site.gateway.max_body_bytes

    @router.post("", openapi_extra=CONVERSATION_BODY)
    async def create(request: Request, caller: Calling) -> Response:
        body = await read_json(request, limit)
        refuse_unknown(body, {"items", "metadata"})
        metadata, items = read_metadata(body.get("metadata")), _read_items(body.get("items"))
        made = await asyncio.to_thread(
            store.create, caller.user, key_id=caller.key_id, now=time.time(), metadata=metadata, items=items
        )
        return _json(conversation_object(made))

    @router.get("")
    async def list_all(
        caller: Calling,
        query: SearchText = "",
        after: str | None = None,
        limit: Limit = 20,
        order: Direction = "desc",
    ) -> Response:
        page = await asyncio.to_thread(
            store.list, caller.user, query, after=_known(after), limit=limit, order=order
        )
        return _json(as_list([listed_object(one) for one in page.data], page.has_more, none=""))

    @router.get("/{identifier}")
    async def get(identifier: str, caller: Calling) -> Response:
        return _json(conversation_object(await asyncio.to_thread(store.get, caller.user, _id(identifier))))

    @router.post("/{identifier}", openapi_extra=METADATA_BODY)
    async def change(identifier: str, request: Request, caller: Calling) -> Response:
        body = await read_json(request, limit)
        refuse_unknown(body, {"metadata"})
        if "metadata" not in body:
            raise InvalidRequestError("Missing required parameter: 'metadata'.", param="metadata")
        metadata = read_metadata(body["metadata"])
        return _json(
            conversation_object(await asyncio.to_thread(store.update, caller.user, _id(identifier), metadata))
        )

    @router.delete("/{identifier}")
    async def delete(identifier: str, caller: Calling) -> Response:
        await asyncio.to_thread(store.delete, caller.user, _id(identifier))
        return _json({"id": identifier, "object": "conversation.deleted", "deleted": True})

    @router.post("/{identifier}/close")
    async def close(identifier: str, caller: Calling) -> Response:
        return _json(listed_object(await asyncio.to_thread(store.close, caller.user, _id(identifier), time.time())))

    @router.get("/{identifier}/export")
    async def export(identifier: str, caller: Calling) -> Response:
        found = await asyncio.to_thread(store.export, caller.user, _id(identifier))
        response = _json(export_object(found))
        response.headers["Content-Disposition"] = f'attachment; filename="{found.conversation.id}.json"'
        return response

    @router.post("/{identifier}/items", openapi_extra=ITEMS_BODY)
    async def add_items(identifier: str, request: Request, caller: Calling) -> Response:
        body = await read_json(request, limit)
        refuse_unknown(body, {"items", "include"})
        items = _read_items(body.get("items"))
        if not items:
            raise InvalidRequestError("'items' has 1 to 20 items.", param="items")
        stored = await asyncio.to_thread(
            store.add_items, caller.user, _id(identifier), items, key_id=caller.key_id, now=time.time()
        )
        include = _include(request)
        return _json(as_list([shown_form(item, include) for item in stored], False, none=""))

    @router.get("/{identifier}/items")
    async def list_items(
        identifier: str,
        request: Request,
        caller: Calling,
        after: str | None = None,
        limit: Limit = 20,
        order: Direction = "desc",
    ) -> Response:
        page = await asyncio.to_thread(
            store.items, caller.user, _id(identifier), after=_known(after, "item"), limit=limit, order=order
        )
        include = _include(request)
        return _json(as_list([shown_form(item, include) for item in page.data], page.has_more, none=""))

    @router.get("/{identifier}/items/{item}")
    async def get_item(identifier: str, item: str, request: Request, caller: Calling) -> Response:
        found = await asyncio.to_thread(store.get_item, caller.user, _id(identifier), _id(item, "item"))
        return _json(shown_form(found, _include(request)))

    @router.delete("/{identifier}/items/{item}")
    async def delete_item(identifier: str, item: str, caller: Calling) -> Response:
        left = await asyncio.to_thread(store.delete_item, caller.user, _id(identifier), _id(item, "item"))
        return _json(conversation_object(left))

    return router


def conversation_object(conversation: StoredConversation) -> dict[str, Any]:
    """Return a conversation in OpenAI's form."""
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": int(conversation.created_at),
        "metadata": conversation.metadata,
    }


def listed_object(conversation: StoredConversation) -> dict[str, Any]:
    """Return a conversation in OpenAI's form with two fields of ours: ``updated_at`` and ``closed_at``."""
    closed = conversation.closed_at
    return {
        **conversation_object(conversation),
        "updated_at": int(conversation.updated_at),
        "closed_at": None if closed is None else int(closed),
    }


def export_object(found: ConversationExport) -> dict[str, Any]:
    """Return a whole conversation as one JSON object."""
    return {
        "object": "conversation.export",
        "version": EXPORT_VERSION,
        "conversation": listed_object(found.conversation),
        "items": found.items,
        "responses": found.responses,
    }


def _json(value: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _id(identifier: str, kind: str = "conversation") -> str:
    if not is_id(identifier):
        raise not_found(kind, identifier)
    return identifier


def _known(after: str | None, kind: str = "conversation") -> str | None:
    return _id(after, kind) if after else None


def _include(request: Request) -> set[str]:
    # The SDKs name the parameter with brackets.
    return {*request.query_params.getlist("include"), *request.query_params.getlist("include[]")}


def _read_items(value: object) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidRequestError("'items' is not a list.", param="items")
    if len(value) > MAX_ITEMS:
        raise InvalidRequestError(f"'items' has {len(value)} items; at most {MAX_ITEMS} fit.", param="items")
    return [stored_form(item, f"items[{at}]") for at, item in enumerate(value)]
