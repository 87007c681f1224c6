"""Responses: their state, the items that each one added, the chains and conversations that they continue.

A response is stored with its input before its first event. It ends in one transaction with its output, its status
and its place in the conversation. So a crash leaves a response without output, and never a half one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Row, Select, and_, delete, exists, func, insert, literal, select, update
from sqlalchemy.orm import aliased

from appliance.assistant import ids
from appliance.assistant.missing import expired_store, not_found
from appliance.assistant.store.conversations import ConversationStore
from appliance.assistant.store.database import Database
from appliance.assistant.store.items import OTHER, PREFIXES, REFERENCE, delete_unused, put_items, read_items
from appliance.assistant.store.passages import state_of
from appliance.assistant.store.schema import (
    CONVERSATION_ITEMS,
    CONVERSATIONS,
    ITEMS,
    RESPONSE_ITEMS,
    RESPONSES,
)
from appliance.errors import ConflictError, InvalidRequestError, NotFoundError

KIND = "response"
UNFINISHED = ("queued", "in_progress")
KEPT_IN_CONVERSATION = ("completed", "incomplete")
"""Ends after which the conversation has the turn; after another one, the client repeats it."""
LONGEST_CHAIN = 10_000
"""Responses in a chain; more would be a loop."""

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OwnInput:
    """The input of one response: all its items with their ids, and the ids of those that are stored already."""

    items: list[Body]
    stored: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class TurnHistory:
    """All that precedes the model's turn."""

    items: Sequence[Mapping[str, Any]]
    """Items of the conversation or of the chain, oldest first."""
    own: OwnInput
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Metadata of the conversation."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as it was stored."""

    body: Body
    """The response object without its output."""
    output: list[Body]
    status: str
    background: bool

    def shown(self) -> Body:
        """Return the response object, whole."""
        return {**self.body, "status": self.status, "output": self.output}


@dataclass(frozen=True, slots=True)
class InputPage:
    """A part of the input of a response."""

    data: list[Body]
    has_more: bool


class ResponseStore:
    """The responses of all tenants; every method but those for the operator has the tenant in its condition."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._conversations = ConversationStore(database)

    def read_history(
        self,
        tenant: str,
        items: Sequence[Mapping[str, Any]],
        *,
        conversation: str | None,
        previous: str | None,
        stores: Sequence[str] = (),
    ) -> TurnHistory:
        """Return the history of a turn with the input ``items``, which get their ids here.

        Raises:
            NotFoundError: The conversation, the response, an item or a vector store is unknown to ``tenant``.
            ConflictError: The previous response still runs.
        """
        with self._database.reading() as connection:
            metadata: Mapping[str, str] = {}
            before: list[Body] = []
            if conversation is not None:
                metadata = _metadata(connection, tenant, conversation)
                before = _conversation_items(connection, tenant, conversation)
            elif previous is not None:
                before = _chain_items(connection, tenant, previous)
            _check_stores(connection, tenant, stores)
            return TurnHistory(before, _own_input(connection, tenant, items), metadata)

    def begin(
        self, tenant: str, key_id: str, body: Mapping[str, Any], own: OwnInput, *, conversation: str | None
    ) -> None:
        """Store a new response with its input.

        Args:
            tenant: The user to which it belongs.
            key_id: The key that made it.
            body: The response object.
            own: Its input.
            conversation: The conversation that gets its items when it ends; None if there is none.

        Raises:
            StoreError: The database refuses it.
        """
        with self._database.writing() as connection:
            connection.execute(
                insert(RESPONSES).values(
                    id=body["id"],
                    tenant=tenant,
                    key_id=key_id,
                    conversation_id=conversation,
                    previous_id=body["previous_response_id"],
                    status=body["status"],
                    background=body["background"],
                    created_at=float(body["created_at"]),
                    body=_encoded(body),
                )
            )
            new = [item for item in own.items if item["id"] not in own.stored]
            put_items(
                connection, tenant, new, float(body["created_at"]), item_ids=[item["id"] for item in new] or None
            )
            _refer(connection, str(body["id"]), [item["id"] for item in own.items], first=0, output=False)

    def mark_running(self, tenant: str, identifier: str, body: Mapping[str, Any]) -> None:
        """Store that a queued response runs now."""
        with self._database.writing() as connection:
            connection.execute(
                update(RESPONSES)
                .where(_is(tenant, identifier), RESPONSES.c.status == "queued")
                .values(status="in_progress", body=_encoded(body))
            )

    def finish(
        self, tenant: str, key_id: str, body: Mapping[str, Any], own: OwnInput, output: Sequence[Body], now: float
    ) -> bool:
        """Store the end of a response in one transaction; return whether it was still there and unfinished."""
        identifier = str(body["id"])
        with self._database.writing() as connection:
            ended = connection.execute(
                update(RESPONSES)
                .where(_is(tenant, identifier), RESPONSES.c.status.in_(UNFINISHED))
                .values(status=body["status"], ended_at=now, body=_encoded(body))
            ).rowcount
            if not ended:
                return False
            if output:
                put_items(connection, tenant, output, now, item_ids=[item["id"] for item in output])
                _refer(
                    connection,
                    identifier,
                    [item["id"] for item in output],
                    first=len(own.items),
                    output=True,
                )
            conversation = connection.scalar(select(RESPONSES.c.conversation_id).where(_is(tenant, identifier)))
            if conversation is not None and body["status"] in KEPT_IN_CONVERSATION:
                added = [item["id"] for item in (*own.items, *output)]
                there = set(
                    connection.scalars(
                        select(CONVERSATION_ITEMS.c.item_id).where(
                            CONVERSATION_ITEMS.c.conversation_id == conversation,
                            CONVERSATION_ITEMS.c.item_id.in_(own.stored),
                        )
                    )
                )
                fresh = [one for one in dict.fromkeys(added) if one not in there]
                self._conversations.append(connection, tenant, conversation, fresh, now, key_id)
            return True

    def get(self, tenant: str, identifier: str) -> StoredResponse:
        """Return a response. Raises :class:`NotFoundError`."""
        with self._database.reading() as connection:
            row = _row(connection, tenant, identifier)
            output = connection.scalars(
                _item_bodies(tenant)
                .where(RESPONSE_ITEMS.c.response_id == identifier, RESPONSE_ITEMS.c.output)
                .order_by(RESPONSE_ITEMS.c.position)
            ).all()
        return StoredResponse(
            body=msgspec.json.decode(row.body),
            output=[msgspec.json.decode(body) for body in output],
            status=row.status,
            background=row.background,
        )

    def input_items(
        self,
        tenant: str,
        identifier: str,
        *,
        after: str | None,
        limit: int,
        order: Literal["asc", "desc"],
    ) -> InputPage:
        """Return at most ``limit`` items of the input of a response, those that follow the item ``after``."""
        position = RESPONSE_ITEMS.c.position
        with self._database.reading() as connection:
            _row(connection, tenant, identifier)
            of_it = (RESPONSE_ITEMS.c.response_id == identifier, RESPONSE_ITEMS.c.output.is_(False))
            found = _item_bodies(tenant).where(*of_it)
            if after is not None:
                last = connection.scalar(select(position).where(*of_it, RESPONSE_ITEMS.c.item_id == after))
                if last is None:
                    raise not_found("item", after)
                found = found.where(position < last if order == "desc" else position > last)
            found = found.order_by(position.desc() if order == "desc" else position).limit(limit + 1)
            bodies = connection.scalars(found).all()
        return InputPage([msgspec.json.decode(body) for body in bodies[:limit]], has_more=len(bodies) > limit)

    def delete(self, tenant: str, identifier: str) -> None:
        """Delete a response, and the items to which nothing else refers. Raises :class:`NotFoundError`."""
        with self._database.writing() as connection:
            if not _remove(connection, tenant, [identifier]):
                raise not_found(KIND, identifier)

    def recover(self, now: float, only: Set[str] | None = None) -> int:
        """Mark unfinished responses as failed and return how many.

        Args:
            now: The time of their end.
            only: Ids of responses that do not run any more. None means all, for the start of the process.
        """
        unfinished = RESPONSES.c.status.in_(UNFINISHED)
        with self._database.writing() as connection:
            rows = connection.execute(
                select(RESPONSES.c.id, RESPONSES.c.tenant, RESPONSES.c.body).where(
                    unfinished if only is None else and_(unfinished, RESPONSES.c.id.in_(only))
                )
            ).all()
            for row in rows:
                error = {"code": "server_error", "message": "The service stopped before the response was complete."}
                body = {**msgspec.json.decode(row.body), "status": "failed", "error": error}
                connection.execute(
                    update(RESPONSES)
                    .where(_is(row.tenant, row.id))
                    .values(status="failed", ended_at=now, body=_encoded(body))
                )
        return len(rows)

    def expire(self, before: float) -> int:
        """Delete responses outside conversations that ended before ``before``; return how many.

        A response that a later one continues stays until that one expires, so that no chain loses its beginning.
        """
        later = aliased(RESPONSES)
        with self._database.writing() as connection:
            rows = connection.execute(
                select(RESPONSES.c.tenant, RESPONSES.c.id).where(
                    RESPONSES.c.ended_at < before,
                    RESPONSES.c.conversation_id.is_(None),
                    ~exists().where(later.c.previous_id == RESPONSES.c.id, later.c.tenant == RESPONSES.c.tenant),
                )
            ).all()
            return sum(_remove(connection, row.tenant, [row.id]) for row in rows)


def _is(tenant: str, identifier: str) -> Any:
    return and_(RESPONSES.c.tenant == tenant, RESPONSES.c.id == identifier)


def _encoded(body: Mapping[str, Any]) -> str:
    return msgspec.json.encode({key: value for key, value in body.items() if key != "output"}).decode()


def _row(connection: Connection, tenant: str, identifier: str) -> Row[Any]:
    row = connection.execute(select(RESPONSES).where(_is(tenant, identifier))).one_or_none()
    if row is None:
        raise not_found(KIND, identifier)
    return row


def _refer(connection: Connection, identifier: str, item_ids: Sequence[str], *, first: int, output: bool) -> None:
    if item_ids:
        connection.execute(
            insert(RESPONSE_ITEMS),
            [
                {"response_id": identifier, "position": first + at, "item_id": item_id, "output": output}
                for at, item_id in enumerate(item_ids)
            ],
        )


def _remove(connection: Connection, tenant: str, identifiers: Sequence[str]) -> int:
    own = select(RESPONSES.c.id).where(RESPONSES.c.tenant == tenant, RESPONSES.c.id.in_(identifiers))
    used = connection.scalars(select(RESPONSE_ITEMS.c.item_id).where(RESPONSE_ITEMS.c.response_id.in_(own))).all()
    connection.execute(delete(RESPONSE_ITEMS).where(RESPONSE_ITEMS.c.response_id.in_(own)))
    removed = connection.execute(
        delete(RESPONSES).where(RESPONSES.c.tenant == tenant, RESPONSES.c.id.in_(identifiers))
    ).rowcount
    delete_unused(connection, tenant, used)
    return removed


def _item_bodies(tenant: str) -> Select[Any]:
    joined = RESPONSE_ITEMS.join(ITEMS, ITEMS.c.id == RESPONSE_ITEMS.c.item_id)
    return select(ITEMS.c.body).select_from(joined).where(ITEMS.c.tenant == tenant)


def _metadata(connection: Connection, tenant: str, conversation: str) -> Mapping[str, str]:
    found = connection.scalar(
        select(CONVERSATIONS.c.metadata).where(CONVERSATIONS.c.tenant == tenant, CONVERSATIONS.c.id == conversation)
    )
    if found is None:
        raise not_found("conversation", conversation)
    metadata: Mapping[str, str] = msgspec.json.decode(found)
    return metadata


def _conversation_items(
    connection: Connection, tenant: str, conversation: str, *, until: int | None = None
) -> list[Body]:
    joined = CONVERSATION_ITEMS.join(ITEMS, ITEMS.c.id == CONVERSATION_ITEMS.c.item_id)
    found = (
        select(ITEMS.c.body)
        .select_from(joined)
        .where(CONVERSATION_ITEMS.c.conversation_id == conversation, ITEMS.c.tenant == tenant)
        .order_by(CONVERSATION_ITEMS.c.position)
    )
    if until is not None:
        found = found.where(CONVERSATION_ITEMS.c.position <= until)
    return [msgspec.json.decode(body) for body in connection.scalars(found)]


def _chain_items(connection: Connection, tenant: str, previous: str) -> list[Body]:
    """Return the items of the responses from the first of the chain to ``previous``.

    A response of a conversation begins with the conversation as it was when the response ended.
    """
    columns = (RESPONSES.c.id, RESPONSES.c.previous_id, RESPONSES.c.conversation_id, RESPONSES.c.status)
    start = select(*columns, literal(0).label("depth")).where(_is(tenant, previous))
    walk = start.cte("chain", recursive=True)
    walk = walk.union_all(
        select(*columns, walk.c.depth + 1).where(
            RESPONSES.c.id == walk.c.previous_id,
            RESPONSES.c.tenant == tenant,
            walk.c.conversation_id.is_(None),
            walk.c.depth < LONGEST_CHAIN,
        )
    )
    chain = connection.execute(select(walk).order_by(walk.c.depth)).all()
    if not chain:
        raise not_found(KIND, previous)
    if chain[0].status in UNFINISHED:
        raise ConflictError(
            f"The response '{previous}' still runs; continue it when it has ended.", param="previous_response_id"
        )
    oldest = chain[-1]
    items: list[Body] = []
    if oldest.conversation_id is not None:
        items = _conversation_until(connection, tenant, oldest)
        chain = chain[:-1]
    elif oldest.previous_id is not None:
        raise NotFoundError(
            f"The response '{oldest.previous_id}', with which this chain begins, was deleted.",
            code="not_found",
            param="previous_response_id",
        )
    for one in reversed(chain):
        bodies = connection.scalars(
            _item_bodies(tenant).where(RESPONSE_ITEMS.c.response_id == one.id).order_by(RESPONSE_ITEMS.c.position)
        )
        items += [msgspec.json.decode(body) for body in bodies]
    return items


def _conversation_until(connection: Connection, tenant: str, response: Row[Any]) -> list[Body]:
    """Return the items of a response's conversation up to the last one of the response."""
    last = connection.scalar(
        select(func.max(CONVERSATION_ITEMS.c.position))
        .select_from(
            CONVERSATION_ITEMS.join(RESPONSE_ITEMS, RESPONSE_ITEMS.c.item_id == CONVERSATION_ITEMS.c.item_id)
        )
        .where(
            CONVERSATION_ITEMS.c.conversation_id == response.conversation_id,
            RESPONSE_ITEMS.c.response_id == response.id,
        )
    )
    if last is None:
        raise InvalidRequestError(
            "The previous response did not end in its conversation; continue the conversation instead.",
            param="previous_response_id",
        )
    return _conversation_items(connection, tenant, str(response.conversation_id), until=int(last))


def _check_stores(connection: Connection, tenant: str, stores: Sequence[str]) -> None:
    if not stores:
        return
    for one in stores:
        state = state_of(connection, tenant, one)
        if state is None:
            raise not_found("vector_store", one)
        if state.expires_at is not None and state.expires_at <= time.time():
            raise expired_store(one)


def _own_input(connection: Connection, tenant: str, items: Sequence[Mapping[str, Any]]) -> OwnInput:
    """Return ``items`` with new ids; a reference becomes the item to which it refers."""
    references = [str(item["id"]) for item in items if item["type"] == REFERENCE]
    referred = {item["id"]: item for item in read_items(connection, tenant, references)} if references else {}
    own = [
        referred[item["id"]]
        if item["type"] == REFERENCE
        else {**item, "id": ids.new_id(PREFIXES.get(str(item["type"]), OTHER))}
        for item in items
    ]
    return OwnInput(own, frozenset(referred))
