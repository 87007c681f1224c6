"""Conversations: their metadata, the order of their items, and the terms by which they are found.

A conversation is open or closed. Each event runs in one transaction:

| state | event | next state | effect |
|---|---|---|---|
| open | append | open | `updated_at` moves; the memory indexes the new turns later |
| open | close | closed | the memory may index it at once |
| closed | append | open | as for an open one |
| both | delete of an item | same | its passages of the memory are removed, and it is indexed anew |
| both | delete | none | no row of it stays in any table |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import msgspec
from sqlalchemy import Connection, Row, Select, and_, delete, exists, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from appliance.assistant import ids
from appliance.assistant.missing import not_found
from appliance.assistant.retrieval.terms import query_terms, terms
from appliance.assistant.store.database import Database
from appliance.assistant.store.items import batches, delete_unused, message_text, put_items, read_items
from appliance.assistant.store.passages import remove_group
from appliance.assistant.store.schema import (
    CONVERSATION_ITEMS,
    CONVERSATION_TERMS,
    CONVERSATIONS,
    ITEMS,
    RESPONSE_ITEMS,
    RESPONSES,
)
from appliance.errors import InvalidRequestError

KIND = "conversation"
TERM_CHARACTERS = 64
"""Characters of a stored term; the rest of a longer one is not compared."""
INDEXED_CHARACTERS = 100_000
"""Characters of a message whose terms are stored."""
RARE = 500
"""Conversations up to which a term is rare: a search then begins with these and sorts them."""

Order = Literal["asc", "desc"]
Bodies = list[dict[str, Any]]
"""Items as their JSON objects."""
_Entry = TypeVar("_Entry")


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """A conversation without its items; times are seconds since the epoch."""

    id: str
    created_at: float
    updated_at: float
    """Time of the last turn; a change of the metadata does not move it."""
    closed_at: float | None
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class ListPage(Generic[_Entry]):
    """A part of a list, and whether more follows."""

    data: list[_Entry]
    has_more: bool


@dataclass(frozen=True, slots=True)
class DeletedSums:
    """The numbers of rows that a deletion removed."""

    items: int
    """Items to which nothing else refers; the others stay."""
    responses: int
    passages: int


@dataclass(frozen=True, slots=True)
class ConversationExport:
    """A whole conversation, of one moment."""

    conversation: StoredConversation
    items: list[dict[str, Any]]
    """All items, oldest first."""
    responses: list[dict[str, Any]]
    """All responses without their output, oldest first."""


class ConversationStore:
    """The conversations of all tenants in ``database``.

    Each method raises :class:`NotFoundError` for a conversation that the tenant does not have, and
    :class:`StoreError` if the database refuses a statement.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        tenant: str,
        *,
        key_id: str,
        now: float,
        metadata: Mapping[str, str] | None = None,
        items: Sequence[Mapping[str, Any]] = (),
    ) -> StoredConversation:
        """Store a new conversation with ``items`` and return it."""
        identifier = ids.new_id(ids.CONVERSATION)
        kept = dict(metadata or {})
        with self._database.writing() as connection:
            connection.execute(
                insert(CONVERSATIONS).values(
                    id=identifier,
                    tenant=tenant,
                    created_at=now,
                    updated_at=now,
                    key_id=key_id,
                    **_metadata_columns(kept),
                )
            )
            _add_terms(connection, tenant, identifier, [kept.get("title", "")])
            if items:
                stored = put_items(connection, tenant, items, now)
                self.append(connection, tenant, identifier, [item["id"] for item in stored], now, key_id)
        return StoredConversation(identifier, now, now, None, kept)

    def get(self, tenant: str, identifier: str) -> StoredConversation:
        """Return a conversation."""
        with self._database.reading() as connection:
            return _read(connection, tenant, identifier)

    def update(self, tenant: str, identifier: str, metadata: Mapping[str, str]) -> StoredConversation:
        """Replace the metadata and return the conversation."""
        with self._writing(tenant, identifier) as connection:
            before = _read(connection, tenant, identifier)
            connection.execute(
                update(CONVERSATIONS)
                .where(CONVERSATIONS.c.tenant == tenant, CONVERSATIONS.c.id == identifier)
                .values(**_metadata_columns(metadata))
            )
            title = metadata.get("title", "")
            if _terms_of([before.metadata.get("title", "")]) <= _terms_of([title]):
                _add_terms(connection, tenant, identifier, [title])
            else:
                _renew_terms(connection, tenant, identifier)
            return _read(connection, tenant, identifier)

    def close(self, tenant: str, identifier: str, now: float) -> StoredConversation:
        """Mark a conversation as ended, so that the memory indexes it at once; the next turn opens it again."""
        with self._writing(tenant, identifier) as connection:
            connection.execute(
                update(CONVERSATIONS)
                .where(
                    CONVERSATIONS.c.tenant == tenant,
                    CONVERSATIONS.c.id == identifier,
                    CONVERSATIONS.c.closed_at.is_(None),
                )
                .values(closed_at=now)
            )
            return _read(connection, tenant, identifier)

    def delete(self, tenant: str, identifier: str) -> DeletedSums:
        """Delete a conversation with its terms, responses, passages, and the items that nothing else refers to."""
        with self._writing(tenant, identifier) as connection:
            of_it = and_(RESPONSES.c.tenant == tenant, RESPONSES.c.conversation_id == identifier)
            responses = select(RESPONSES.c.id).where(of_it)
            used = [
                *connection.scalars(_item_ids(tenant, identifier)),
                *connection.scalars(
                    select(RESPONSE_ITEMS.c.item_id).where(RESPONSE_ITEMS.c.response_id.in_(responses))
                ),
            ]
            connection.execute(delete(RESPONSE_ITEMS).where(RESPONSE_ITEMS.c.response_id.in_(responses)))
            deleted_responses = connection.execute(delete(RESPONSES).where(of_it)).rowcount
            connection.execute(delete(CONVERSATION_ITEMS).where(CONVERSATION_ITEMS.c.conversation_id == identifier))
            connection.execute(_its_terms(tenant, identifier))
            passages = _remove_passages(connection, tenant, identifier)
            items = delete_unused(connection, tenant, used)
            connection.execute(
                delete(CONVERSATIONS).where(CONVERSATIONS.c.tenant == tenant, CONVERSATIONS.c.id == identifier)
            )
        return DeletedSums(items=items, responses=deleted_responses, passages=passages)

    def list(
        self, tenant: str, query: str = "", *, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> ListPage[StoredConversation]:
        """Return at most ``limit`` conversations by their last turn, those that follow ``after``.

        A ``query`` limits them to those whose title and messages have all its words, in any inflection.
        """
        wanted = _searched(query)
        if wanted is not None and not wanted:
            return ListPage([], has_more=False)
        with self._database.reading() as connection:
            found = select(CONVERSATIONS).where(CONVERSATIONS.c.tenant == tenant)
            if wanted:
                found = found.where(*_has_terms(connection, tenant, wanted))
            place = (CONVERSATIONS.c.updated_at, CONVERSATIONS.c.id)
            if after is not None:
                last = _read(connection, tenant, after)
                found = found.where(_follows(place, (last.updated_at, last.id), order))
            found = found.order_by(*(column.desc() if order == "desc" else column.asc() for column in place))
            rows = connection.execute(found.limit(limit + 1)).all()
        return ListPage([_conversation(row) for row in rows[:limit]], has_more=len(rows) > limit)

    def tenants(self) -> Sequence[Row[Any]]:
        """Return each tenant with ``conversations`` and its last ``updated_at``, newest first; for the operator."""
        last = func.max(CONVERSATIONS.c.updated_at).label("updated_at")
        with self._database.reading() as connection:
            return connection.execute(
                select(CONVERSATIONS.c.tenant, func.count().label("conversations"), last)
                .group_by(CONVERSATIONS.c.tenant)
                .order_by(last.desc())
            ).all()

    def items(
        self, tenant: str, identifier: str, *, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> ListPage[dict[str, Any]]:
        """Return at most ``limit`` items of a conversation in ``order``, those that follow the item ``after``."""
        with self._database.reading() as connection:
            _read(connection, tenant, identifier)
            position = CONVERSATION_ITEMS.c.position
            found = _with_bodies(tenant, identifier)
            if after is not None:
                last = _position(connection, tenant, identifier, after)
                found = found.where(position < last if order == "desc" else position > last)
            found = found.order_by(position.desc() if order == "desc" else position.asc()).limit(limit + 1)
            rows = connection.scalars(found).all()
        return ListPage([msgspec.json.decode(body) for body in rows[:limit]], has_more=len(rows) > limit)

    def add_items(
        self, tenant: str, identifier: str, items: Sequence[Mapping[str, Any]], *, key_id: str, now: float
    ) -> Bodies:
        """Store ``items`` at the end of a conversation and return them with their ids."""
        with self._writing(tenant, identifier) as connection:
            stored = put_items(connection, tenant, items, now)
            self.append(connection, tenant, identifier, [item["id"] for item in stored], now, key_id)
        return stored

    def get_item(self, tenant: str, identifier: str, item_id: str) -> dict[str, Any]:
        """Return one item of a conversation; raises :class:`NotFoundError` if it does not have it."""
        with self._database.reading() as connection:
            _read(connection, tenant, identifier)
            _position(connection, tenant, identifier, item_id)
            return read_items(connection, tenant, [item_id])[0]

    def delete_item(self, tenant: str, identifier: str, item_id: str) -> StoredConversation:
        """Remove an item from a conversation, which is returned; a response that refers to the item keeps it.

        The memory forgets the conversation and indexes what remains.
        """
        with self._writing(tenant, identifier) as connection:
            position = _position(connection, tenant, identifier, item_id)
            connection.execute(
                delete(CONVERSATION_ITEMS).where(
                    CONVERSATION_ITEMS.c.conversation_id == identifier, CONVERSATION_ITEMS.c.position == position
                )
            )
            _remove_passages(connection, tenant, identifier)
            connection.execute(
                update(CONVERSATIONS)
                .where(CONVERSATIONS.c.tenant == tenant, CONVERSATIONS.c.id == identifier)
                .values(indexed_at=None)
            )
            _renew_terms(connection, tenant, identifier)
            delete_unused(connection, tenant, [item_id])
            return _read(connection, tenant, identifier)

    def export(self, tenant: str, identifier: str) -> ConversationExport:
        """Return a whole conversation, of one moment."""
        with self._database.reading() as connection:
            conversation = _read(connection, tenant, identifier)
            bodies = connection.scalars(
                _with_bodies(tenant, identifier).order_by(CONVERSATION_ITEMS.c.position)
            ).all()
            responses = connection.execute(
                select(RESPONSES.c.id, RESPONSES.c.status, RESPONSES.c.body)
                .where(RESPONSES.c.tenant == tenant, RESPONSES.c.conversation_id == identifier)
                .order_by(RESPONSES.c.created_at, RESPONSES.c.id)
            ).all()
        return ConversationExport(
            conversation=conversation,
            items=[msgspec.json.decode(body) for body in bodies],
            responses=[{**msgspec.json.decode(row.body), "id": row.id, "status": row.status} for row in responses],
        )

    def append(
        self,
        connection: Connection,
        tenant: str,
        conversation_id: str,
        item_ids: Sequence[str],
        now: float,
        key_id: str,
    ) -> None:
        """Add stored items of ``tenant`` to the end of a conversation, in the transaction of ``connection``.

        Raises :class:`InvalidRequestError` for an item that it has already.
        """
        # The update is first: it holds the row, so that two turns never compute the same position.
        if not connection.execute(
            update(CONVERSATIONS)
            .where(CONVERSATIONS.c.tenant == tenant, CONVERSATIONS.c.id == conversation_id)
            .values(updated_at=now, key_id=key_id, closed_at=None)
        ).rowcount:
            raise not_found(KIND, conversation_id)
        if not item_ids:
            return
        _refuse_repeated(connection, conversation_id, item_ids)
        bodies = read_items(connection, tenant, item_ids)
        last = connection.scalar(
            select(func.max(CONVERSATION_ITEMS.c.position)).where(
                CONVERSATION_ITEMS.c.conversation_id == conversation_id
            )
        )
        first = 0 if last is None else last + 1
        connection.execute(
            insert(CONVERSATION_ITEMS),
            [
                {"conversation_id": conversation_id, "position": first + at, "item_id": item_id}
                for at, item_id in enumerate(item_ids)
            ],
        )
        _add_terms(connection, tenant, conversation_id, [message_text(body) for body in bodies])

    @contextmanager
    def _writing(self, tenant: str, identifier: str) -> Iterator[Connection]:
        """Yield the connection of a transaction that holds the row of a conversation."""
        with self._database.writing() as connection:
            # A statement that writes is first: SQLite then takes its lock before anything is read.
            if not connection.execute(
                update(CONVERSATIONS)
                .where(CONVERSATIONS.c.tenant == tenant, CONVERSATIONS.c.id == identifier)
                .values(updated_at=CONVERSATIONS.c.updated_at)
            ).rowcount:
                raise not_found(KIND, identifier)
            yield connection


def _metadata_columns(metadata: Mapping[str, str]) -> dict[str, str]:
    return {"metadata": msgspec.json.encode(dict(metadata)).decode(), "title": metadata.get("title", "")}


def _conversation(row: Row[Any]) -> StoredConversation:
    return StoredConversation(
        id=row.id,
        created_at=row.created_at,
        updated_at=row.updated_at,
        closed_at=row.closed_at,
        metadata=msgspec.json.decode(row.metadata),
    )


def _read(connection: Connection, tenant: str, identifier: str) -> StoredConversation:
    row = connection.execute(
        select(CONVERSATIONS).where(CONVERSATIONS.c.tenant == tenant, CONVERSATIONS.c.id == identifier)
    ).one_or_none()
    if row is None:
        raise not_found(KIND, identifier)
    return _conversation(row)


def _its_items(tenant: str, identifier: str) -> Any:
    """Return the condition for rows of the join of references and items that belong to a conversation."""
    return and_(CONVERSATION_ITEMS.c.conversation_id == identifier, ITEMS.c.tenant == tenant)


def _item_ids(tenant: str, identifier: str) -> Select[Any]:
    joined = CONVERSATION_ITEMS.join(ITEMS, ITEMS.c.id == CONVERSATION_ITEMS.c.item_id)
    return select(ITEMS.c.id).select_from(joined).where(_its_items(tenant, identifier))


def _with_bodies(tenant: str, identifier: str) -> Select[Any]:
    joined = CONVERSATION_ITEMS.join(ITEMS, ITEMS.c.id == CONVERSATION_ITEMS.c.item_id)
    return select(ITEMS.c.body).select_from(joined).where(_its_items(tenant, identifier))


def _position(connection: Connection, tenant: str, identifier: str, item_id: str) -> int:
    joined = CONVERSATION_ITEMS.join(ITEMS, ITEMS.c.id == CONVERSATION_ITEMS.c.item_id)
    found = connection.scalar(
        select(CONVERSATION_ITEMS.c.position)
        .select_from(joined)
        .where(_its_items(tenant, identifier), ITEMS.c.id == item_id)
    )
    if found is None:
        raise not_found("item", item_id)
    return int(found)


def _refuse_repeated(connection: Connection, identifier: str, item_ids: Sequence[str]) -> None:
    repeated = next((one for at, one in enumerate(item_ids) if one in item_ids[:at]), None)
    for some in batches(item_ids):
        repeated = repeated or connection.scalar(
            select(CONVERSATION_ITEMS.c.item_id)
            .where(CONVERSATION_ITEMS.c.conversation_id == identifier, CONVERSATION_ITEMS.c.item_id.in_(some))
            .limit(1)
        )
    if repeated is not None:
        raise InvalidRequestError(f"The conversation has the item '{repeated}' already.", param="items")


def _remove_passages(connection: Connection, tenant: str, identifier: str) -> int:
    """Remove the passages of a conversation from the memory and count the change of their stores."""
    return remove_group(connection, tenant, identifier)


def _its_terms(tenant: str, identifier: str) -> Any:
    """Return the statement that deletes the terms of a conversation."""
    return delete(CONVERSATION_TERMS).where(
        CONVERSATION_TERMS.c.tenant == tenant, CONVERSATION_TERMS.c.conversation_id == identifier
    )


def _renew_terms(connection: Connection, tenant: str, identifier: str) -> None:
    connection.execute(_its_terms(tenant, identifier))
    title = _read(connection, tenant, identifier).metadata.get("title", "")
    bodies = connection.scalars(_with_bodies(tenant, identifier))
    texts = [message_text(msgspec.json.decode(body)) for body in bodies]
    _add_terms(connection, tenant, identifier, [title, *texts])


def _add_terms(connection: Connection, tenant: str, identifier: str, texts: Sequence[str]) -> None:
    rows = [{"tenant": tenant, "term": term, "conversation_id": identifier} for term in sorted(_terms_of(texts))]
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(CONVERSATION_TERMS).on_conflict_do_nothing(), rows)


def _terms_of(texts: Sequence[str]) -> set[str]:
    return {term[:TERM_CHARACTERS] for text in texts for term in terms(text[:INDEXED_CHARACTERS])}


def _searched(query: str) -> list[str] | None:
    """Return the terms of ``query``; ``None`` for an empty one, and none for one without words."""
    if not query.strip():
        return None
    found = query_terms(query)
    # The index has the words of a compound, so that a search for `max-model-len` also finds "max model len".
    words = [term for term in found if "_" not in term]
    return sorted({term[:TERM_CHARACTERS] for term in words or found})


def _has_terms(connection: Connection, tenant: str, wanted: Sequence[str]) -> list[Any]:
    """Return the conditions for a conversation with all terms of ``wanted``.

    A search with a rare term begins with its conversations. Otherwise it walks the list by update, which finds the
    first page of common terms soon.
    """
    column = CONVERSATION_TERMS.c
    having = [and_(column.tenant == tenant, column.term == term) for term in wanted]
    conditions: list[Any] = [exists().where(one, column.conversation_id == CONVERSATIONS.c.id) for one in having]
    for condition in having:
        having_it = select(column.conversation_id).where(condition)
        count = connection.scalar(select(func.count()).select_from(having_it.limit(RARE + 1).subquery()))
        if count is not None and count <= RARE:
            return [CONVERSATIONS.c.id.in_(having_it), *conditions]
    return conditions


def _follows(place: tuple[Any, Any], last: tuple[float, str], order: Order) -> Any:
    """Return the condition for rows after ``last`` in the order of ``place``."""
    (one, two), (first, second) = place, last
    if order == "desc":
        return or_(one < first, and_(one == first, two < second))
    return or_(one > first, and_(one == first, two > second))
