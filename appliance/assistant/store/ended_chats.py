"""Conversations that have ended: which wait for the memory, their messages, and the result of their indexing."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, func, or_, select, update

from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.assistant.store.items import message_text
from appliance.assistant.store.passages import StoredPassage, replace_group
from appliance.assistant.store.schema import CONVERSATION_ITEMS, CONVERSATIONS, ITEMS, RESPONSES
from appliance.assistant.store.stores import ensure_chats_store

CANDIDATES = 500
"""Waiting conversations that are read at once."""


@dataclass(frozen=True, slots=True)
class EndedChat:
    """A conversation that waits for the memory; times are seconds since the epoch."""

    id: str
    tenant: str
    key_id: str
    """The key of its last turn."""
    updated_at: float
    title: str
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class SpokenMessage:
    """The text of a message of a user or an assistant."""

    role: str
    text: str
    created_at: float


def _waiting(now: float, idle_s: float) -> Any:
    ended = or_(CONVERSATIONS.c.updated_at <= now - idle_s, CONVERSATIONS.c.closed_at.is_not(None))
    stale = or_(CONVERSATIONS.c.indexed_at.is_(None), CONVERSATIONS.c.indexed_at < CONVERSATIONS.c.updated_at)
    return and_(ended, stale)


def count_waiting(connection: Connection, now: float, idle_s: float) -> int:
    """Return the number of ended conversations that are not in the memory yet."""
    return int(connection.scalar(select(func.count()).select_from(CONVERSATIONS).where(_waiting(now, idle_s))) or 0)


def read_waiting(
    connection: Connection, now: float, idle_s: float, *, skipped: AbstractSet[tuple[str, str]] = frozenset()
) -> list[EndedChat]:
    """Return the ended conversations that wait longest, of all tenants, without those of ``skipped``.

    Args:
        connection: A connection that reads.
        now: Seconds since the epoch.
        idle_s: Seconds without a turn that end a conversation.
        skipped: Conversations that wait, by their id and their key.
    """
    statement = select(CONVERSATIONS).where(_waiting(now, idle_s)).order_by(CONVERSATIONS.c.updated_at)
    return [
        EndedChat(row.id, row.tenant, row.key_id, row.updated_at, row.title, msgspec.json.decode(row.metadata))
        for row in connection.execute(statement.limit(CANDIDATES + len(skipped)))
        if (row.id, row.key_id) not in skipped
    ]


def still_waiting(
    connection: Connection, now: float, idle_s: float, chats: AbstractSet[tuple[str, str]]
) -> frozenset[tuple[str, str]]:
    """Return those of ``chats``, conversations by their id and the key of their last turn, that wait."""
    columns = select(CONVERSATIONS.c.id, CONVERSATIONS.c.key_id)
    found: set[tuple[str, str]] = set()
    identifiers = sorted({identifier for identifier, _ in chats})
    for start in range(0, len(identifiers), CANDIDATES):
        of_part = CONVERSATIONS.c.id.in_(identifiers[start : start + CANDIDATES])
        rows = connection.execute(columns.where(_waiting(now, idle_s), of_part))
        found |= {(row.id, row.key_id) for row in rows}
    return frozenset(found & chats)


def read_messages(connection: Connection, tenant: str, conversation_id: str) -> list[SpokenMessage]:
    """Return the messages of the conversation in their order, without empty ones."""
    statement = (
        select(ITEMS.c.body, ITEMS.c.created_at)
        .join(CONVERSATION_ITEMS, CONVERSATION_ITEMS.c.item_id == ITEMS.c.id)
        .where(CONVERSATION_ITEMS.c.conversation_id == conversation_id, ITEMS.c.tenant == tenant)
        .order_by(CONVERSATION_ITEMS.c.position)
    )
    found = []
    for body, created_at in connection.execute(statement):
        item = msgspec.json.decode(body)
        text = message_text(item).strip()
        if text:
            found.append(SpokenMessage(str(item["role"]), text, created_at))
    return found


def last_model(connection: Connection, tenant: str, conversation_id: str) -> str | None:
    """Return the model or the role of the last response in the conversation; None if it has no response."""
    statement = (
        select(RESPONSES.c.body)
        .where(RESPONSES.c.tenant == tenant, RESPONSES.c.conversation_id == conversation_id)
        .order_by(RESPONSES.c.created_at.desc())
        .limit(1)
    )
    body = connection.scalar(statement)
    model = None if body is None else msgspec.json.decode(body).get("model")
    return model if isinstance(model, str) else None


def put_chat(
    connection: Connection,
    chat: EndedChat,
    passages: Sequence[StoredPassage],
    *,
    fingerprint: EmbedderFingerprint | None,
    now: float,
) -> bool:
    """Store the passages of the conversation and that it is indexed, in one transaction of the caller.

    Returns:
        Whether the conversation is as it was read; otherwise nothing has changed, and it waits again or is deleted.

    Raises:
        ConflictError: The store of past chats has vectors of another embedder.
    """
    its = (
        CONVERSATIONS.c.id == chat.id,
        CONVERSATIONS.c.tenant == chat.tenant,
        CONVERSATIONS.c.updated_at == chat.updated_at,
    )
    changed = connection.execute(update(CONVERSATIONS).where(*its).values(indexed_at=chat.updated_at))
    if changed.rowcount != 1:
        return False
    store_id = ensure_chats_store(connection, chat.tenant, now)
    return replace_group(connection, chat.tenant, store_id, chat.id, passages, fingerprint=fingerprint)
