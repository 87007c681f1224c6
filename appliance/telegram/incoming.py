"""Converts an update of aiogram to the bot's own types. Pure."""

from __future__ import annotations

from aiogram.types import (
    CallbackQuery,
    Message,
    MessageEntity,
    PreCheckoutQuery,
    SuccessfulPayment,
    Update,
    User,
)

from appliance.telegram.texts import language_of
from appliance.telegram.updates import (
    Attachment,
    BotUpdate,
    ChatPlace,
    CheckoutQuery,
    IncomingMessage,
    PaidInvoice,
    PressedButton,
    StoppedDraft,
)

ALLOWED_UPDATES = (
    "message",
    "edited_message",
    "callback_query",
    "pre_checkout_query",
    "stopped_message_generation",
)
"""Kinds of updates that the bot requests. Older servers skip a kind that they do not have."""


def convert(update: Update, bot_id: int, bot_name: str) -> BotUpdate | None:
    """Return ``update`` in the bot's own types; ``None`` for one that the bot does not use."""
    if update.callback_query is not None:
        return _button(update.update_id, update.callback_query)
    if (checkout := update.pre_checkout_query) is not None:
        return _checkout(update.update_id, checkout)
    # aiogram has it since Bot API 10.3.
    stopped = getattr(update, "stopped_message_generation", None)
    if stopped is not None:
        place = ChatPlace(stopped.chat.id, stopped.message_thread_id or 0, stopped.chat.type == "private")
        return StoppedDraft(update.update_id, place, stopped.draft_id)
    message = update.message or update.edited_message
    if message is None or message.from_user is None or message.from_user.is_bot:
        return None
    if message.successful_payment is not None:
        return _paid(update.update_id, message, message.from_user, message.successful_payment)
    return _message(update, message, message.from_user, bot_id, bot_name)


def _message(update: Update, message: Message, person: User, bot_id: int, bot_name: str) -> IncomingMessage | None:
    attachment = _attachment(message)
    text = message.text or message.caption or ""
    if not text and attachment is None:
        return None
    mentioned, text = _without_mention(text, message.entities or message.caption_entities or (), bot_id, bot_name)
    answered = message.reply_to_message
    replies = answered is not None and answered.from_user is not None and answered.from_user.id == bot_id
    place = _place(message)
    return IncomingMessage(
        update_id=update.update_id,
        place=place,
        person=person.id,
        language=language_of(person.language_code),
        message_id=message.message_id,
        text=text,
        addressed=place.private or mentioned or replies,
        edited=update.edited_message is not None,
        attachment=attachment,
    )


def _checkout(update_id: int, query: PreCheckoutQuery) -> CheckoutQuery:
    return CheckoutQuery(
        update_id=update_id,
        person=query.from_user.id,
        language=language_of(query.from_user.language_code),
        query_id=query.id,
        currency=query.currency,
        stars=query.total_amount,
        payload=query.invoice_payload,
    )


def _paid(update_id: int, message: Message, person: User, paid: SuccessfulPayment) -> PaidInvoice:
    return PaidInvoice(
        update_id=update_id,
        place=_place(message),
        person=person.id,
        language=language_of(person.language_code),
        currency=paid.currency,
        stars=paid.total_amount,
        payload=paid.invoice_payload,
        charge=paid.telegram_payment_charge_id,
    )


def _place(message: Message) -> ChatPlace:
    # In a chat without topics, a reply also has a message_thread_id.
    topic = message.message_thread_id if message.is_topic_message else None
    return ChatPlace(message.chat.id, topic or 0, message.chat.type == "private")


def _button(update_id: int, query: CallbackQuery) -> PressedButton | None:
    message = query.message
    if message is None:
        return None
    place = _place(message) if isinstance(message, Message) else ChatPlace(message.chat.id, 0, private=False)
    return PressedButton(
        update_id=update_id,
        place=place,
        person=query.from_user.id,
        language=language_of(query.from_user.language_code),
        query_id=query.id,
        data=query.data or "",
    )


def _attachment(message: Message) -> Attachment | None:
    """Return the file of a message; kind ``other`` for content that the bot does not read."""
    if (voice := message.voice or message.audio) is not None:
        return Attachment("voice", voice.file_id, voice.file_size or 0, "voice.ogg")
    if message.photo:
        best = message.photo[-1]
        return Attachment("photo", best.file_id, best.file_size or 0, "photo.jpg")
    if (document := message.document) is not None:
        return Attachment("document", document.file_id, document.file_size or 0, document.file_name or "file")
    unread = (message.sticker, message.video, message.video_note, message.location, message.contact)
    others = (message.animation, message.poll, message.dice, message.venue, message.game, message.story)
    return Attachment("other") if any(one is not None for one in (*unread, *others)) else None


def _without_mention(
    text: str, entities: list[MessageEntity] | tuple[()], bot_id: int, bot_name: str
) -> tuple[bool, str]:
    """Return whether ``text`` mentions the bot, and the text without the mention."""
    for entity in entities:
        found = entity.extract_from(text)
        own = found.lower() == f"@{bot_name.lower()}"
        linked = entity.type == "text_mention" and entity.user is not None and entity.user.id == bot_id
        command = entity.type == "bot_command" and found.lower().endswith(f"@{bot_name.lower()}")
        if command:
            return True, text.replace(found, found.partition("@")[0], 1).strip()
        if own or linked:
            return True, " ".join(text.replace(found, " ", 1).split(" ")).strip()
    return False, text
