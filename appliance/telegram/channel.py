"""The Bot API as the bot uses it: each call has an outcome of a fixed list, and none raises.

A request is uncertain if it was sent and no response of the Bot API arrived. Such a message is never repeated by
the bot itself. Each failure names its cause without the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import (
    AiogramError,
    ClientDecodeError,
    TelegramAPIError,
    TelegramBadRequest,
    TelegramConflictError,
    TelegramNetworkError,
    TelegramRetryAfter,
    TelegramServerError,
    TelegramUnauthorizedError,
)
from aiogram.methods import (
    AnswerCallbackQuery,
    AnswerPreCheckoutQuery,
    CreateForumTopic,
    DeleteMessage,
    EditForumTopic,
    EditMessageText,
    GetFile,
    GetMe,
    GetUpdates,
    RefundStarPayment,
    SendDocument,
    SendInvoice,
    SendMessage,
    SendMessageDraft,
    TelegramMethod,
)
from aiogram.types import (
    BufferedInputFile,
    ForumTopic,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    LabeledPrice,
    LinkPreviewOptions,
    MessageEntity,
    ReplyParameters,
    Update,
    User,
)
from aiohttp import ClientConnectorError, ClientError

from appliance.telegram.formatting import FormattedText
from appliance.telegram.incoming import ALLOWED_UPDATES
from appliance.telegram.updates import ChatPlace

MAX_FILE = 20 * 2**20
"""Bytes of the largest file that a bot may download."""

STARS = "XTR"
"""The currency of Telegram Stars."""

CALL_S = 30
POLL_S = 25
"""Seconds for which Telegram holds a request for updates that has none."""

DRAFTS_STOP = "can_stop" in SendMessageDraft.model_fields
"""Whether drafts have a stop button of their own: Bot API 10.3 and later."""

UNCHANGED = "message is not modified"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Accepted:
    """Telegram accepted the call; ``message_id`` is that of a sent message or a new topic, otherwise 0."""

    message_id: int = 0


@dataclass(frozen=True, slots=True)
class Throttled:
    """Telegram accepts nothing in this chat for ``retry_after_s``."""

    retry_after_s: float


@dataclass(frozen=True, slots=True)
class NotAccepted:
    """Telegram did not get the call, or could not execute it: it may be repeated."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """The call was sent and no response arrived: Telegram may have executed it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Declined:
    """Telegram refuses the call and would refuse it again."""

    reason: str


CallOutcome: TypeAlias = Accepted | Throttled | NotAccepted | Unconfirmed | Declined


@dataclass(frozen=True, slots=True)
class InlineButton:
    """A button below a message; ``data`` has at most 64 bytes."""

    label: str
    data: str


def outcome_of(error: AiogramError) -> CallOutcome:
    """Return the outcome of a call that ended with ``error``."""
    if isinstance(error, TelegramRetryAfter):
        return Throttled(float(error.retry_after))
    if isinstance(error, TelegramNetworkError):
        # The connection itself failed, so no byte of the request was sent.
        if isinstance(error.__cause__, ClientConnectorError):
            return NotAccepted("no connection to the Bot API")
        return Unconfirmed(f"no response ({type(error.__cause__).__name__})")
    if isinstance(error, ClientDecodeError):
        return Unconfirmed("a response that is not of the Bot API")
    return _refusal(error)


def _refusal(error: AiogramError) -> CallOutcome:
    """Return the outcome of a call to which the Bot API itself responded with ``error``."""
    if isinstance(error, TelegramServerError):
        return NotAccepted("a failure of the Bot API")
    if isinstance(error, TelegramBadRequest) and UNCHANGED in error.message:
        return Accepted()
    return Declined(error.message[:200] if isinstance(error, TelegramAPIError) else type(error).__name__)


class BotChannel:
    """The bot with ``token`` at the Bot API ``api``; raises ``TokenValidationError`` for text that is not one."""

    def __init__(self, token: str, api: str) -> None:
        session = AiohttpSession(api=TelegramAPIServer.from_base(api), timeout=CALL_S)
        self._bot = Bot(token, session=session)

    async def me(self) -> User:
        """Return the bot itself; raises :class:`AiogramError`."""
        return await self._bot(GetMe())

    async def updates(self, offset: int | None) -> Sequence[Update]:
        """Return the next updates, or none after :data:`POLL_S`; raises :class:`AiogramError`."""
        method = GetUpdates(offset=offset, timeout=POLL_S, allowed_updates=list(ALLOWED_UPDATES))
        return await self._bot(method, request_timeout=POLL_S + CALL_S)

    async def send(
        self, place: ChatPlace, content: FormattedText, buttons: Sequence[InlineButton] = (), reply_to: int = 0
    ) -> CallOutcome:
        """Send a message."""
        return await self._call(
            SendMessage(
                chat_id=place.chat_id,
                message_thread_id=place.thread_id or None,
                text=content.text,
                entities=_entities(content),
                parse_mode=None,
                link_preview_options=LinkPreviewOptions(is_disabled=True),
                reply_markup=_keyboard(buttons),
                reply_parameters=_reply(reply_to),
            )
        )

    async def send_file(self, place: ChatPlace, name: str, content: str, caption: str) -> CallOutcome:
        """Send ``content`` as a file."""
        return await self._call(
            SendDocument(
                chat_id=place.chat_id,
                message_thread_id=place.thread_id or None,
                document=BufferedInputFile(content.encode(), name),
                caption=caption,
                parse_mode=None,
            )
        )

    async def edit(
        self, place: ChatPlace, message_id: int, content: FormattedText, buttons: Sequence[InlineButton] = ()
    ) -> CallOutcome:
        """Replace the text of a message. Its repetition has no further effect."""
        return await self._call(
            EditMessageText(
                chat_id=place.chat_id,
                message_id=message_id,
                text=content.text,
                entities=_entities(content),
                parse_mode=None,
                link_preview_options=LinkPreviewOptions(is_disabled=True),
                reply_markup=_keyboard(buttons),
            )
        )

    async def draft(
        self, place: ChatPlace, draft_id: int, content: FormattedText, *, can_stop: bool
    ) -> CallOutcome:
        """Show an unfinished message in a private chat, with a stop button if the Bot API has it."""
        more: dict[str, Any] = {"can_stop": True} if can_stop else {}
        return await self._call(
            SendMessageDraft(
                chat_id=place.chat_id,
                message_thread_id=place.thread_id or None,
                draft_id=draft_id,
                text=content.text,
                entities=_entities(content),
                parse_mode=None,
                **more,
            )
        )

    async def delete(self, place: ChatPlace, message_id: int) -> CallOutcome:
        """Delete a message of the bot."""
        return await self._call(DeleteMessage(chat_id=place.chat_id, message_id=message_id))

    async def create_topic(self, place: ChatPlace, name: str) -> CallOutcome:
        """Create a topic in a private chat; ``name`` has 1 to 128 characters."""
        return await self._call(CreateForumTopic(chat_id=place.chat_id, name=name))

    async def rename_topic(self, place: ChatPlace, name: str) -> CallOutcome:
        """Change the name of a topic. Its repetition has no further effect."""
        return await self._call(EditForumTopic(chat_id=place.chat_id, message_thread_id=place.thread_id, name=name))

    async def acknowledge(self, query_id: str, text: str = "") -> CallOutcome:
        """End the wait of the app after a press on a button."""
        return await self._call(AnswerCallbackQuery(callback_query_id=query_id, text=text or None))

    async def invoice(self, place: ChatPlace, *, title: str, words: str, payload: str, stars: int) -> CallOutcome:
        """Send an invoice in Telegram Stars; ``title`` has at most 32 characters, ``words`` 255."""
        return await self._call(
            SendInvoice(
                chat_id=place.chat_id,
                message_thread_id=place.thread_id or None,
                title=title,
                description=words,
                payload=payload,
                # Stars need no provider, exactly one price, and no tip.
                provider_token="",
                currency=STARS,
                prices=[LabeledPrice(label=title, amount=stars)],
            )
        )

    async def answer_checkout(self, query_id: str, refusal: str = "") -> CallOutcome:
        """Accept a payment before it is made, or refuse it with a text for the person."""
        return await self._call(
            AnswerPreCheckoutQuery(pre_checkout_query_id=query_id, ok=not refusal, error_message=refusal or None)
        )

    async def refund(self, person: int, charge: str) -> CallOutcome:
        """Return the Stars of a payment; a second refund is declined."""
        return await self._call(RefundStarPayment(user_id=person, telegram_payment_charge_id=charge))

    async def download(self, file_id: str) -> bytes | None:
        """Return the content of a file; ``None`` if Telegram does not deliver it or it is too large."""
        try:
            found = await self._bot(GetFile(file_id=file_id))
            if not found.file_path or (found.file_size or 0) > MAX_FILE:
                return None
            received = bytearray()
            url = self._bot.session.api.file_url(self._bot.token, found.file_path)
            async for piece in self._bot.session.stream_content(url, timeout=CALL_S * 4):
                received += piece
                if len(received) > MAX_FILE:
                    return None
        except (AiogramError, ClientError, TimeoutError):
            return None
        return bytes(received)

    async def close(self) -> None:
        """Close all connections."""
        await self._bot.session.close()

    async def _call(self, method: TelegramMethod[_T]) -> CallOutcome:
        try:
            result = await self._bot(method)
        except AiogramError as error:
            return outcome_of(error)
        except (TimeoutError, ClientError) as error:
            return Unconfirmed(f"no response ({type(error).__name__})")
        if isinstance(result, ForumTopic):
            return Accepted(result.message_thread_id)
        return Accepted(getattr(result, "message_id", 0))


def is_conflict(error: AiogramError) -> bool:
    """Return whether another process requests the updates of the same bot."""
    return isinstance(error, TelegramConflictError)


def is_final(error: AiogramError) -> bool:
    """Return whether the token is not valid, so that a retry has no use."""
    return isinstance(error, TelegramUnauthorizedError)


def _entities(content: FormattedText) -> list[MessageEntity] | None:
    return [
        MessageEntity(type=one.kind, offset=one.offset, length=one.length, url=one.url, language=one.language)
        for one in content.entities
    ] or None


def _keyboard(buttons: Sequence[InlineButton]) -> InlineKeyboardMarkup | None:
    rows = [[InlineKeyboardButton(text=one.label, callback_data=one.data)] for one in buttons]
    return InlineKeyboardMarkup(inline_keyboard=rows) if rows else None


def _reply(message_id: int) -> ReplyParameters | None:
    return ReplyParameters(message_id=message_id, allow_sending_without_reply=True) if message_id else None
