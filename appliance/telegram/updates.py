"""Updates of Telegram as the bot uses them: its own types, which its database keeps as JSON."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec


class ChatPlace(msgspec.Struct, frozen=True):
    """A chat, or a topic of it: ``thread_id`` is 0 without a topic."""

    chat_id: int
    thread_id: int
    private: bool


class Attachment(msgspec.Struct, frozen=True):
    """A file of a message; ``size`` in bytes, 0 if Telegram did not name it."""

    kind: Literal["voice", "photo", "document", "other"]
    file_id: str = ""
    size: int = 0
    name: str = ""


class IncomingMessage(msgspec.Struct, frozen=True, tag="message"):
    """A message, new or ``edited``; ``addressed`` is whether it is for the bot."""

    update_id: int
    place: ChatPlace
    person: int
    language: str
    message_id: int
    text: str
    addressed: bool
    edited: bool = False
    attachment: Attachment | None = None


class PressedButton(msgspec.Struct, frozen=True, tag="button"):
    """A press on a button below a message of the bot."""

    update_id: int
    place: ChatPlace
    person: int
    language: str
    query_id: str
    data: str


class StoppedDraft(msgspec.Struct, frozen=True, tag="stop"):
    """A press on the stop button of a draft (Bot API 10.3); ``draft_id`` is the number of the turn."""

    update_id: int
    place: ChatPlace
    draft_id: int


class CheckoutQuery(msgspec.Struct, frozen=True, tag="checkout"):
    """A request of Telegram before it takes the Stars of an invoice; it waits 10 s for a response."""

    update_id: int
    person: int
    language: str
    query_id: str
    currency: str
    stars: int
    payload: str


class PaidInvoice(msgspec.Struct, frozen=True, tag="paid"):
    """A message about a payment that was made; ``charge`` is Telegram's id of it."""

    update_id: int
    place: ChatPlace
    person: int
    language: str
    currency: str
    stars: int
    payload: str
    charge: str


BotUpdate: TypeAlias = IncomingMessage | PressedButton | StoppedDraft | CheckoutQuery | PaidInvoice

_DECODER: msgspec.json.Decoder[BotUpdate] = msgspec.json.Decoder(BotUpdate)


def encoded(update: BotUpdate) -> str:
    """Return ``update`` as JSON."""
    return msgspec.json.encode(update).decode()


def decoded(payload: str) -> BotUpdate:
    """Return the update in ``payload``, which :func:`encoded` made."""
    return _DECODER.decode(payload)
