"""``appliance memory reindex``: embeds the passages of a store again, after its embedder changed.

New vectors are stored next to the old ones, batch by batch, so an interrupted run continues. The last transaction
puts all of them in place with their fingerprint: a search uses the old vectors or the new ones, never both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, null, or_, select, update

from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.embedding_client import Embedding, EmbeddingClient
from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.assistant.store.passages import vector_bytes, write_fingerprint
from appliance.assistant.store.schema import CONVERSATIONS, PASSAGES, VECTOR_STORE_FILES, VECTOR_STORES

BATCH = 64
"""Passages of one transaction."""


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """A store as ``appliance memory status`` lists it."""

    id: str
    tenant: str
    kind: str
    name: str
    passages: int
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class _Unembedded:
    """A passage without a vector of the present embedder."""

    number: int
    text: str
    key_id: str


def read_summaries(connection: Connection) -> list[StoreSummary]:
    """Return all stores with the number of their passages, by tenant."""
    counts = select(PASSAGES.c.store_id, func.count().label("passages")).group_by(PASSAGES.c.store_id).subquery()
    stores = VECTOR_STORES.c
    statement = (
        select(stores.id, stores.tenant, stores.kind, stores.name, counts.c.passages, stores.fingerprint)
        .join_from(VECTOR_STORES, counts, counts.c.store_id == stores.id, isouter=True)
        .order_by(stores.tenant, stores.created_at, stores.id)
    )
    return [
        StoreSummary(row.id, row.tenant, row.kind, row.name, row.passages or 0, row.fingerprint)
        for row in connection.execute(statement)
    ]


async def reindex(
    context: AssistantContext, store: StoreSummary, *, progress: Callable[[int, int], None] | None = None
) -> int:
    """Embed the passages of ``store`` by the site's embedder; return how many were embedded in this run.

    The key of each file or conversation is billed. ``progress`` gets the finished passages and all.

    Raises :class:`RequestError` if a key is not valid or the embedder fails; a later run continues.
    """
    client = context.shared(EmbeddingClient)
    done = 0
    while True:
        found = await asyncio.to_thread(_next, context, store)
        if not found:
            break
        caller = Caller(user=store.tenant, key_id=found[0].key_id, request_id=f"reindex-{store.id[-12:]}")
        vectors = await client.documents(caller, [one.text for one in found])
        fingerprint = client.fingerprint()
        if await asyncio.to_thread(_keep, context, store, found, vectors, fingerprint):
            done += len(found)
        if progress is not None:
            progress(done, store.passages)
    await asyncio.to_thread(_finish, context, store)
    return done


def _next(context: AssistantContext, store: StoreSummary) -> list[_Unembedded]:
    """Return some passages of one key that have no new vector yet."""
    if context.settings.embedder is None:
        return []
    key = func.coalesce(CONVERSATIONS.c.key_id, VECTOR_STORE_FILES.c.key_id, "").label("key_id")
    statement = (
        select(PASSAGES.c.number, PASSAGES.c.text, PASSAGES.c.indexed_text, key)
        .join(CONVERSATIONS, CONVERSATIONS.c.id == PASSAGES.c.group_id, isouter=True)
        .join(
            VECTOR_STORE_FILES,
            (VECTOR_STORE_FILES.c.file_id == PASSAGES.c.group_id)
            & (VECTOR_STORE_FILES.c.store_id == PASSAGES.c.store_id),
            isouter=True,
        )
        .where(
            PASSAGES.c.store_id == store.id,
            PASSAGES.c.tenant == store.tenant,
            PASSAGES.c.next_vector.is_(None),
        )
        .order_by(PASSAGES.c.number)
        .limit(BATCH)
    )
    with context.database.reading() as connection:
        rows = connection.execute(statement).all()
    return [
        _Unembedded(row.number, row.indexed_text or row.text, row.key_id)
        for row in rows
        if row.key_id == rows[0].key_id
    ]


def _keep(
    context: AssistantContext,
    store: StoreSummary,
    passages: Sequence[_Unembedded],
    vectors: Sequence[Embedding],
    fingerprint: EmbedderFingerprint | None,
) -> bool:
    """Store new vectors; those of another embedder, from an earlier run, are dropped first."""
    if fingerprint is None:
        return False
    text = write_fingerprint(fingerprint)
    stores, its = VECTOR_STORES.c, (VECTOR_STORES.c.id == store.id, VECTOR_STORES.c.tenant == store.tenant)
    with context.database.writing() as connection:
        other = or_(stores.next_fingerprint.is_(None), stores.next_fingerprint != text)
        if connection.execute(update(VECTOR_STORES).where(*its, other).values(next_fingerprint=text)).rowcount:
            connection.execute(update(PASSAGES).where(PASSAGES.c.store_id == store.id).values(next_vector=null()))
        for one, vector in zip(passages, vectors, strict=True):
            connection.execute(
                update(PASSAGES)
                .where(PASSAGES.c.number == one.number, PASSAGES.c.tenant == store.tenant)
                .values(next_vector=vector_bytes(vector, fingerprint.dimensions))
            )
    return True


def _finish(context: AssistantContext, store: StoreSummary) -> None:
    """Put the new vectors in place, unless passages without one arrived meanwhile."""
    stores, its = VECTOR_STORES.c, (PASSAGES.c.store_id == store.id, PASSAGES.c.tenant == store.tenant)
    with_words = context.settings.embedder is None
    with context.database.writing() as connection:
        change = {"changes": stores.changes + 1, "next_fingerprint": null()}
        missing = select(func.count()).select_from(PASSAGES).where(*its, PASSAGES.c.next_vector.is_(None))
        connection.execute(
            update(VECTOR_STORES)
            .where(stores.id == store.id, stores.tenant == store.tenant)
            .values(fingerprint=null() if with_words else stores.next_fingerprint, **change)
        )
        if with_words:
            connection.execute(update(PASSAGES).where(*its).values(vector=b"", next_vector=null()))
            return
        if connection.scalar(missing):
            connection.rollback()
            return
        connection.execute(update(PASSAGES).where(*its).values(vector=PASSAGES.c.next_vector, next_vector=null()))
