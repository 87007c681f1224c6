"""Items: messages, calls of tools and their outputs. Each is stored once; conversations and responses refer to it.

The functions take the connection of a transaction, so that items and the references to them are stored together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, exists, insert, select

from appliance.assistant import ids
from appliance.assistant.missing import not_found
from appliance.assistant.store.schema import CONVERSATION_ITEMS, ITEMS, RESPONSE_ITEMS

REFERENCE = "item_reference"
"""Type of an input that names an item of the same tenant instead of repeating it."""

OTHER = "item"
"""Prefix of the ids of items without one of their own."""

PREFIXES = {
    "message": ids.MESSAGE,
    "reasoning": ids.REASONING,
    "function_call": ids.FUNCTION_CALL,
    "function_call_output": ids.FUNCTION_CALL_OUTPUT,
    "file_search_call": ids.FILE_SEARCH_CALL,
    "web_search_call": ids.WEB_SEARCH_CALL,
    "compaction": ids.COMPACTION,
}
"""Prefixes of ids by the type of the item."""

AT_ONCE = 500
"""Ids in the condition of one statement: a database limits its values."""


def put_items(
    connection: Connection,
    tenant: str,
    items: Sequence[Mapping[str, Any]],
    now: float,
    *,
    item_ids: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Store ``items`` at ``now`` and return them with their ids, in their order.

    An item gets a new id; an id that a client chose is replaced. ``item_ids`` are ids that this process made with
    :func:`appliance.assistant.ids.new_id`, one an item. An ``item_reference`` gives the item that it names.

    Raises :class:`NotFoundError` if the tenant does not have a referenced item.
    """
    chosen = item_ids or [ids.new_id(PREFIXES.get(str(item["type"]), OTHER)) for item in items]
    bodies = [{**item, "id": chosen[at]} for at, item in enumerate(items)]
    rows = [
        {
            "id": body["id"],
            "tenant": tenant,
            "type": body["type"],
            "created_at": now,
            "body": msgspec.json.encode(body).decode(),
        }
        for body in bodies
        if body["type"] != REFERENCE
    ]
    if rows:
        connection.execute(insert(ITEMS), rows)
    referred = [str(item["id"]) for item in items if item["type"] == REFERENCE]
    found = iter(read_items(connection, tenant, referred))
    return [next(found) if body["type"] == REFERENCE else body for body in bodies]


def read_items(connection: Connection, tenant: str, item_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the items ``item_ids`` of ``tenant`` in this order.

    Raises :class:`NotFoundError` for the first that the tenant does not have.
    """
    found: dict[str, dict[str, Any]] = {}
    for some in batches(item_ids):
        rows = connection.execute(
            select(ITEMS.c.id, ITEMS.c.body).where(ITEMS.c.tenant == tenant, ITEMS.c.id.in_(some))
        )
        found |= {row.id: msgspec.json.decode(row.body) for row in rows}
    for one in item_ids:
        if one not in found:
            raise not_found("item", one)
    return [found[one] for one in item_ids]


def delete_unused(connection: Connection, tenant: str, item_ids: Iterable[str]) -> int:
    """Delete those of ``item_ids`` to which no conversation and no response refers; return how many."""
    deleted = 0
    for some in batches(item_ids):
        deleted += connection.execute(
            delete(ITEMS).where(
                ITEMS.c.tenant == tenant,
                ITEMS.c.id.in_(some),
                ~exists().where(CONVERSATION_ITEMS.c.item_id == ITEMS.c.id),
                ~exists().where(RESPONSE_ITEMS.c.item_id == ITEMS.c.id),
            )
        ).rowcount
    return deleted


def batches(item_ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield the distinct ids of ``item_ids`` in lists of at most :data:`AT_ONCE`."""
    rest = iter(dict.fromkeys(item_ids))
    while some := list(islice(rest, AT_ONCE)):
        yield some


def message_text(item: Mapping[str, Any]) -> str:
    """Return the text of a message of a user or of an assistant; empty for every other item."""
    if item.get("type") != "message" or item.get("role") not in {"user", "assistant"}:
        return ""
    content = item.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(
        part["text"]
        for part in content or ()
        if isinstance(part, Mapping)
        and part.get("type") in {"input_text", "output_text", "text"}
        and isinstance(part.get("text"), str)
    )
