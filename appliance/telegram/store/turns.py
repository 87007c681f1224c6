"""Received updates, chats, turns and the messages of each turn. A restart continues from here.

An update is stored before the bot confirms it to Telegram, and its payload is removed in the transaction in which
its effect begins. So the same update twice has one effect.

| turn | event | next |
|---|---|---|
| running | the response has ended; its messages are stored in the same transaction | ended |
| running | restart: the stored response, or a note, becomes its messages | ended |
| ended | no message waits any more | done |

| message | event | next |
|---|---|---|
| waiting | the bot begins to send it | sending |
| sending | Telegram accepted it | sent |
| sending | Telegram did not accept it | waiting |
| sending | no response, or a restart: Telegram may have accepted it | unconfirmed |
| unconfirmed | the person requests it again | waiting |
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or

from appliance.telegram.formatting import FormattedText, TextEntity
from appliance.telegram.splitting import LIMIT
from appliance.telegram.store.database import BotDatabase
from appliance.telegram.store.schema import CHATS, PARTS, TURNS, UPDATES
from appliance.telegram.updates import BotUpdate, ChatPlace, decoded, encoded

KEEP_UPDATES_S = 14 * 86400.0
"""Seconds for which the ids of updates are kept; Telegram keeps an update for a day."""

STALE_S = 6 * 86400.0
"""Seconds without an update after which Telegram may begin with a lower number."""


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """The conversation of one person in one topic."""

    id: int
    chat_id: int
    thread_id: int
    person: int
    conversation_id: str | None
    vector_store_id: str | None
    model: str | None
    topic_name: str | None


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One message of a person and its response."""

    id: int
    chat: int
    message_id: int
    created_at: float
    state: str
    response_id: str | None
    placeholder_id: int | None
    tokens: int
    request: dict[str, Any]


@dataclass(frozen=True, slots=True)
class MessagePart:
    """One message of a response."""

    turn: int
    number: int
    content: FormattedText

    @property
    def as_file(self) -> bool:
        """Whether it is sent as a file, because it is longer than a message."""
        return self.content.units > LIMIT


@dataclass(frozen=True, slots=True)
class TurnUsage:
    """Turns and tokens of one person since some time."""

    turns: int
    tokens: int


class TurnStore:
    """Updates, chats, turns, messages."""

    def __init__(self, database: BotDatabase) -> None:
        self._database = database

    # Updates.

    def receive(self, updates: list[BotUpdate], now: float) -> list[BotUpdate]:
        """Store ``updates`` and return those that are new, in their order."""
        new = []
        with self._database.writing() as connection:
            for one in updates:
                values = {"id": one.update_id, "received_at": now, "payload": encoded(one)}
                if connection.execute(insert_or(UPDATES).values(values).on_conflict_do_nothing()).rowcount:
                    new.append(one)
            connection.execute(
                delete(UPDATES).where(UPDATES.c.received_at < now - KEEP_UPDATES_S, UPDATES.c.payload.is_(None))
            )
        return new

    def skip(self, update_id: int, now: float) -> None:
        """Store the number of an update that the bot does not use."""
        with self._database.writing() as connection:
            values = {"id": update_id, "received_at": now, "payload": None}
            connection.execute(insert_or(UPDATES).values(values).on_conflict_do_nothing())

    def next_update(self, now: float) -> int | None:
        """Return the number of the next update; ``None`` if it is not known any more."""
        with self._database.reading() as connection:
            newest = select(UPDATES.c.id).where(UPDATES.c.received_at > now - STALE_S)
            found = connection.execute(newest.order_by(UPDATES.c.received_at.desc(), UPDATES.c.id.desc())).scalar()
        return None if found is None else int(found) + 1

    def waiting_updates(self) -> list[BotUpdate]:
        """Return the updates whose effect has not begun, oldest first."""
        with self._database.reading() as connection:
            rows = select(UPDATES.c.payload).where(UPDATES.c.payload.is_not(None)).order_by(UPDATES.c.id)
            return [decoded(payload) for payload in connection.execute(rows).scalars()]

    def begin(self, *update_ids: int) -> bool:
        """Mark that the effect of these updates begins; return false if it has begun before."""
        with self._database.writing() as connection:
            return _begin(connection, update_ids)

    # Chats.

    def chat(self, place: ChatPlace, person: int) -> ChatRecord:
        """Return the chat of ``person`` in ``place``; it is created at its first use."""
        values = {"chat_id": place.chat_id, "thread_id": place.thread_id, "person": person}
        chosen = [CHATS.c[name] == value for name, value in values.items()]
        with self._database.writing() as connection:
            connection.execute(insert_or(CHATS).values(values).on_conflict_do_nothing())
            return _chat(connection.execute(select(CHATS).where(*chosen)).one())

    def chat_of(self, identifier: int) -> ChatRecord:
        """Return the chat with this number."""
        with self._database.reading() as connection:
            return _chat(connection.execute(select(CHATS).where(CHATS.c.id == identifier)).one())

    def set_chat(self, identifier: int, **values: str | None) -> ChatRecord:
        """Set columns of a chat: ``conversation_id``, ``vector_store_id``, ``model``, ``topic_name``."""
        with self._database.writing() as connection:
            connection.execute(update(CHATS).where(CHATS.c.id == identifier).values(values))
        return self.chat_of(identifier)

    def forget_chats(self, person: int) -> None:
        """Remove the conversations of ``person`` from its chats, because its link has changed."""
        nothing = {"conversation_id": None, "vector_store_id": None, "model": None}
        with self._database.writing() as connection:
            connection.execute(update(CHATS).where(CHATS.c.person == person).values(nothing))

    def topic_name(self, place: ChatPlace) -> str | None:
        """Return the name that the bot gave to a topic; ``None`` if it gave none."""
        with self._database.reading() as connection:
            return connection.execute(select(CHATS.c.topic_name).where(*_at(place))).scalar()

    def move_topic(self, place: ChatPlace, thread_id: int) -> None:
        """Move the chat in ``place``, whose topic does not exist any more, to the topic ``thread_id``."""
        with self._database.writing() as connection:
            connection.execute(update(CHATS).where(*_at(place)).values(thread_id=thread_id))

    # Turns.

    def begin_turn(
        self, chat: int, message_id: int, request: dict[str, Any], now: float, updates: tuple[int, ...]
    ) -> TurnRecord | None:
        """Begin a turn for ``updates``; return ``None`` if their effect has begun before.

        The requests of earlier turns of the chat are removed: only the last turn can be repeated.
        """
        with self._database.writing() as connection:
            if not _begin(connection, updates):
                return None
            connection.execute(update(TURNS).where(TURNS.c.chat == chat).values(request="{}"))
            values = {"chat": chat, "message_id": message_id, "created_at": now, "state": "running"}
            inserted = connection.execute(insert(TURNS).values(**values, request=json.dumps(request)))
            number = inserted.inserted_primary_key
            if number is None:
                return None
            return _turn(connection.execute(select(TURNS).where(TURNS.c.id == number[0])).one())

    def set_turn(self, identifier: int, **values: str | int | None) -> None:
        """Set columns of a turn: ``response_id``, ``placeholder_id``, ``request``."""
        with self._database.writing() as connection:
            connection.execute(update(TURNS).where(TURNS.c.id == identifier).values(values))

    def end_turn(self, identifier: int, parts: list[FormattedText], tokens: int) -> None:
        """Store the messages of a response, of ``tokens`` tokens; they are sent from here."""
        with self._database.writing() as connection:
            state = update(TURNS).where(TURNS.c.id == identifier, TURNS.c.state == "running")
            if connection.execute(state.values(state="ended", tokens=tokens)).rowcount == 0:
                return
            for number, part in enumerate(parts):
                connection.execute(
                    insert(PARTS).values(
                        turn=identifier,
                        number=number,
                        state="waiting",
                        text=part.text,
                        entities=json.dumps([asdict(entity) for entity in part.entities]),
                    )
                )

    def turn(self, identifier: int) -> TurnRecord | None:
        """Return the turn with this number."""
        with self._database.reading() as connection:
            row = connection.execute(select(TURNS).where(TURNS.c.id == identifier)).first()
        return None if row is None else _turn(row)

    def last_turn(self, chat: int) -> TurnRecord | None:
        """Return the newest turn of a chat."""
        with self._database.reading() as connection:
            newest = select(TURNS).where(TURNS.c.chat == chat).order_by(TURNS.c.id.desc())
            row = connection.execute(newest).first()
        return None if row is None else _turn(row)

    def turn_of_message(self, chat: int, message_id: int) -> TurnRecord | None:
        """Return the newest turn of a message."""
        with self._database.reading() as connection:
            chosen = select(TURNS).where(TURNS.c.chat == chat, TURNS.c.message_id == message_id)
            row = connection.execute(chosen.order_by(TURNS.c.id.desc())).first()
        return None if row is None else _turn(row)

    def open_turns(self) -> list[TurnRecord]:
        """Return the turns that are not done, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(select(TURNS).where(TURNS.c.state != "done").order_by(TURNS.c.id)).all()
        return [_turn(row) for row in rows]

    def usage(self, person: int, since: float) -> TurnUsage:
        """Return the turns and tokens of ``person`` since ``since``."""
        sums = select(func.count(), func.coalesce(func.sum(TURNS.c.tokens), 0)).select_from(
            TURNS.join(CHATS, CHATS.c.id == TURNS.c.chat)
        )
        with self._database.reading() as connection:
            row = connection.execute(sums.where(CHATS.c.person == person, TURNS.c.created_at > since)).one()
        return TurnUsage(turns=int(row[0]), tokens=int(row[1]))

    # Messages of a turn.

    def has_part(self, turn: int) -> bool:
        """Return whether a message of a turn waits."""
        with self._database.reading() as connection:
            waiting = select(PARTS.c.number).where(PARTS.c.turn == turn, PARTS.c.state == "waiting")
            return connection.execute(waiting).first() is not None

    def finish(self, turn: int) -> None:
        """End a turn whose messages do not wait any more, and remove the texts of the sent ones."""
        with self._database.writing() as connection:
            connection.execute(update(TURNS).where(TURNS.c.id == turn).values(state="done"))
            connection.execute(
                update(PARTS).where(PARTS.c.turn == turn, PARTS.c.state == "sent").values(text="", entities="[]")
            )

    def next_part(self, turn: int) -> MessagePart | None:
        """Mark the next waiting message of a turn as being sent, and return it."""
        with self._database.writing() as connection:
            chosen = select(PARTS).where(PARTS.c.turn == turn, PARTS.c.state == "waiting").order_by(PARTS.c.number)
            row = connection.execute(chosen).first()
            if row is None:
                return None
            self._set_part(connection, turn, row.number, state="sending")
        entities = tuple(TextEntity(**one) for one in json.loads(row.entities))
        return MessagePart(turn, row.number, FormattedText(row.text, entities))

    def part_sent(self, part: MessagePart, message_id: int) -> None:
        """Record that Telegram accepted ``part``."""
        with self._database.writing() as connection:
            self._set_part(connection, part.turn, part.number, state="sent", message_id=message_id)

    def part_unconfirmed(self, part: MessagePart) -> None:
        """Record that Telegram may have accepted ``part``."""
        with self._database.writing() as connection:
            self._set_part(connection, part.turn, part.number, state="unconfirmed")

    def part_refused(self, part: MessagePart) -> None:
        """Record that Telegram does not accept ``part``, now and later."""
        with self._database.writing() as connection:
            self._set_part(connection, part.turn, part.number, state="refused")

    def part_postponed(self, part: MessagePart) -> None:
        """Record that Telegram did not accept ``part`` yet."""
        with self._database.writing() as connection:
            self._set_part(connection, part.turn, part.number, state="waiting")

    def end_sending(self) -> set[int]:
        """Mark the messages that a stop interrupted as unconfirmed; return their turns.

        The edit of a placeholder has no second effect, so such a message waits again.
        """
        with self._database.writing() as connection:
            edited = select(TURNS.c.id).where(TURNS.c.placeholder_id.is_not(None))
            connection.execute(
                update(PARTS)
                .where(PARTS.c.state == "sending", PARTS.c.number == 0, PARTS.c.turn.in_(edited))
                .where(func.length(PARTS.c.text) <= LIMIT // 2)
                .values(state="waiting")
            )
            turns = set(connection.execute(select(PARTS.c.turn).where(PARTS.c.state == "sending")).scalars())
            connection.execute(update(PARTS).where(PARTS.c.state == "sending").values(state="unconfirmed"))
        return turns

    def request_again(self, turn: int, person: int) -> bool:
        """Let the unconfirmed messages of a turn of ``person`` wait again; return whether there are any."""
        with self._database.writing() as connection:
            owner = select(CHATS.c.person).join(TURNS, TURNS.c.chat == CHATS.c.id).where(TURNS.c.id == turn)
            if connection.execute(owner).scalar() != person:
                return False
            chosen = (PARTS.c.turn == turn, PARTS.c.state == "unconfirmed")
            found = connection.execute(update(PARTS).where(*chosen).values(state="waiting")).rowcount > 0
            if found:
                connection.execute(update(TURNS).where(TURNS.c.id == turn).values(state="ended"))
            return found

    @staticmethod
    def _set_part(connection: Connection, turn: int, number: int, **values: str | int) -> None:
        connection.execute(update(PARTS).where(PARTS.c.turn == turn, PARTS.c.number == number).values(values))


def _begin(connection: Connection, update_ids: tuple[int, ...]) -> bool:
    chosen = (UPDATES.c.id.in_(update_ids), UPDATES.c.payload.is_not(None))
    return connection.execute(update(UPDATES).where(*chosen).values(payload=None)).rowcount == len(update_ids)


def _at(place: ChatPlace) -> tuple[ColumnElement[bool], ...]:
    return CHATS.c.chat_id == place.chat_id, CHATS.c.thread_id == place.thread_id


def _chat(row: Row[Any]) -> ChatRecord:
    return ChatRecord(**row._asdict())


def _turn(row: Row[Any]) -> TurnRecord:
    return TurnRecord(**row._asdict() | {"request": json.loads(row.request)})
