"""A Bot API server on loopback with Telegram's limits, for a bot that chats; aiogram's models validate the calls.

Failures by method, one for each call: ``429:SECONDS``, ``400:TEXT``, ``403:TEXT``, ``500``, ``502`` (a page of a
proxy), ``drop`` (executed, then the connection closes without a response), ``lose`` (not executed, the connection
closes), ``hold`` (executed when the test calls :meth:`TelegramServer.go_on`).
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from aiohttp import web
from pydantic import ValidationError

from tests.fakes.jumping_clock import JumpingClock

if TYPE_CHECKING:
    from aiogram.methods import TelegramMethod

BOT_ID = 777
BOT_NAME = "appliance_test_bot"
CHAT_TOKEN = f"{BOT_ID}:fake-token_for-chats-only_0123456789"
DRAFT_LIFE_S = 30.0
MAX_DOWNLOAD = 20 * 2**20

METHODS = {
    "getMe",
    "getUpdates",
    "sendMessage",
    "sendMessageDraft",
    "sendDocument",
    "editMessageText",
    "deleteMessage",
    "answerCallbackQuery",
    "getFile",
    "createForumTopic",
    "editForumTopic",
    "sendInvoice",
    "answerPreCheckoutQuery",
    "refundStarPayment",
}
"""The methods of this Bot API."""


@cache
def method_model(name: str) -> type[TelegramMethod[Any]]:
    """Return the parameters of the method ``name`` of :data:`METHODS`."""
    # Its import takes 8 s, so the processes that run other tests do without.
    from aiogram import methods

    model: type[TelegramMethod[Any]] = getattr(methods, name[0].upper() + name[1:])
    return model


class TelegramRefusalError(Exception):
    """A response with ``ok`` false."""

    def __init__(self, status: int, description: str, retry_after: int | None = None) -> None:
        super().__init__(description)
        self.status = status
        self.retry_after = retry_after


@dataclass
class ShownMessage:
    """A message of the bot as a person sees it."""

    id: int
    chat: int
    text: str
    at: float
    thread: int = 0
    entities: list[dict[str, Any]] = field(default_factory=list)
    buttons: dict[str, str] = field(default_factory=dict)
    reply_to: int | None = None
    file: bytes | None = None
    edits: int = 0


@dataclass
class ShownDraft:
    """A draft; it disappears after 30 s, and with the next message."""

    chat: int
    id: int
    text: str
    at: float
    can_stop: bool = False


@dataclass
class ShownInvoice:
    """An invoice in a chat."""

    id: int
    chat: int
    title: str
    description: str
    payload: str
    stars: int


@dataclass
class StarCheckout:
    """A payment that a person has confirmed; the Stars are taken if the bot accepts it within 10 s."""

    person: int
    invoice: ShownInvoice
    at: float
    answer: str | None = None
    """Empty if the bot accepted it, its text if it refused."""


@dataclass
class StarCharge:
    """Stars that a person paid."""

    person: int
    stars: int
    refunded: bool = False


class TelegramServer:
    """The server, its chats, and what persons do."""

    def __init__(self, clock: JumpingClock, *, topics: bool = False) -> None:
        self.clock = clock
        self.topics = topics
        self.failures: dict[str, deque[str]] = defaultdict(deque)
        self.calls: list[tuple[str, dict[str, Any], float]] = []
        self.messages: dict[int, ShownMessage] = {}
        self.drafts: list[ShownDraft] = []
        self.acknowledged: list[str] = []
        self.invoices: list[ShownInvoice] = []
        self.checkouts: dict[str, StarCheckout] = {}
        self.charges: dict[str, StarCharge] = {}
        self.files: dict[str, bytes] = {}
        self.file_sizes: dict[str, int] = {}
        self.chats: dict[int, str] = {}
        """Type of each chat that the bot may write to."""
        self.threads: dict[tuple[int, int], str] = {}
        """Names of the topics that exist, by chat and number."""
        self.deleted: set[tuple[int, int]] = set()
        """Topics that a person deleted, perhaps before the bot has read the last message in them."""
        self.url = ""
        self._updates: dict[int, dict[str, Any]] = {}
        self._next_update = 1000
        self._next_message = 1
        self._last_call: dict[int, float] = {}
        self._changed = asyncio.Condition()
        self._go_on = asyncio.Event()
        self._closed = False
        self._last: dict[str, Any] = {}
        self._repeated: dict[str, Any] = {}

    # Persons.

    async def say(
        self,
        text: str,
        *,
        person: int = 5,
        chat: int | None = None,
        thread: int = 0,
        language: str = "en",
        edit: int | None = None,
        reply_to_bot: bool = False,
        **content: Any,
    ) -> int:
        """A person sends a message, or edits the message ``edit``; return its number."""
        chat = person if chat is None else chat
        self.chats.setdefault(chat, "private" if chat > 0 else "supergroup")
        if thread:
            assert chat < 0 or self.topics, "private chats have topics only if the bot has enabled them"
            if (chat, thread) not in self.deleted:
                self.threads.setdefault((chat, thread), "A person's topic")
        number = edit if edit is not None else self._number()
        message: dict[str, Any] = {
            "message_id": number,
            "date": int(self.clock.now()),
            "chat": {"id": chat, "type": self.chats[chat]},
            "from": _person(person, language),
            **content,
        }
        if text:
            message["caption" if content else "text"] = text
            message["caption_entities" if content else "entities"] = _entities_of(text)
        if thread:
            message |= _topic(thread)
        if reply_to_bot:
            message["reply_to_message"] = {
                "message_id": 1,
                "date": 1,
                "chat": message["chat"],
                "from": {"id": BOT_ID, "is_bot": True, "first_name": "Bot"},
            }
        if edit is not None:
            message["edit_date"] = int(self.clock.now())
        await self.put({"edited_message" if edit is not None else "message": message})
        return number

    def delete_topic(self, thread: int, chat: int = 5) -> None:
        """A person deletes a topic."""
        del self.threads[chat, thread]
        self.deleted.add((chat, thread))

    async def press(self, message: ShownMessage, label: str, *, person: int = 5) -> None:
        """A person presses a button."""
        await self.put(
            {
                "callback_query": {
                    "id": str(self._number()),
                    "from": _person(person, "en"),
                    "chat_instance": "1",
                    "data": message.buttons[label],
                    "message": {
                        "message_id": message.id,
                        "date": 1,
                        "chat": {"id": message.chat, "type": self.chats[message.chat]},
                        **_topic(message.thread),
                    },
                }
            }
        )

    async def confirm(self, invoice: ShownInvoice, *, person: int = 5) -> StarCheckout:
        """A person confirms the payment of an invoice; return what Telegram then requests from the bot."""
        query = f"checkout-{self._number()}"
        checkout = self.checkouts[query] = StarCheckout(person, invoice, self.clock.now())
        await self.put(
            {
                "pre_checkout_query": {
                    "id": query,
                    "from": _person(person, "en"),
                    "currency": "XTR",
                    "total_amount": invoice.stars,
                    "invoice_payload": invoice.payload,
                }
            }
        )
        return checkout

    async def take_stars(self, checkout: StarCheckout) -> str:
        """Take the Stars of an accepted payment, report it to the bot, and return the id of the charge."""
        assert checkout.answer == "", "without the bot's acceptance, no Stars are taken"
        charge = f"charge-{secrets.token_hex(8)}"
        self.charges[charge] = StarCharge(checkout.person, checkout.invoice.stars)
        await self.put({"message": self.payment_message(checkout, charge)})
        return charge

    def payment_message(self, checkout: StarCheckout, charge: str) -> dict[str, Any]:
        """Return the message by which Telegram reports a payment."""
        return {
            "message_id": self._number(),
            "date": int(self.clock.now()),
            "chat": {"id": checkout.invoice.chat, "type": self.chats[checkout.invoice.chat]},
            "from": _person(checkout.person, "en"),
            "successful_payment": {
                "currency": "XTR",
                "total_amount": checkout.invoice.stars,
                "invoice_payload": checkout.invoice.payload,
                "telegram_payment_charge_id": charge,
                "provider_payment_charge_id": "",
            },
        }

    async def put(self, update: dict[str, Any], number: int | None = None) -> int:
        """Add an update, with a number of its own or that of an earlier one."""
        async with self._changed:
            if number is None:
                number, self._next_update = self._next_update, self._next_update + 1
            self._updates[number] = self._last = {"update_id": number, **update}
            self._changed.notify_all()
        return number

    async def repeat(self) -> None:
        """Deliver the last update once more, as a server that lost its confirmation."""
        async with self._changed:
            self._repeated = self._last
            self._changed.notify_all()

    def shown(self, chat: int = 5) -> list[str]:
        """Return the texts of the bot's messages in a chat."""
        return [one.text for one in self.messages.values() if one.chat == chat]

    async def until(self, condition: Any, what: str) -> None:
        """Wait until ``condition`` holds."""
        for _ in range(6000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(
            f"{what} did not happen; the bot showed {[one.text for one in self.messages.values()]}"
        )

    def go_on(self) -> None:
        """Execute the calls that hold."""
        self._go_on.set()

    async def close(self) -> None:
        """End the requests for updates that wait."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def confirmed(self) -> bool:
        """Whether the bot has confirmed all updates."""
        return not self._updates

    # The API.

    def application(self) -> web.Application:
        app = web.Application(client_max_size=60 * 2**20)
        app.router.add_route("*", "/bot{token}/{method}", self._call)
        app.router.add_get("/file/bot{token}/{path}", self._download)
        return app

    async def _call(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["method"]
        fields = {key: _decoded(value) for key, value in (await request.post()).items()}
        if request.match_info["token"] != CHAT_TOKEN:
            return _reply(TelegramRefusalError(401, "Unauthorized"))
        if name == "getUpdates":
            return web.json_response({"ok": True, "result": await self._poll(fields)})
        self.calls.append((name, fields, self.clock.now()))
        failure, _, detail = self.failures[name].popleft().partition(":") if self.failures[name] else ("", "", "")
        if failure == "hold":
            await self._go_on.wait()
        if failure in ("429", "400", "403", "500"):
            pause = int(detail) if failure == "429" else None
            return _reply(TelegramRefusalError(int(failure), detail or "Internal Server Error", pause))
        if failure == "502":
            return web.Response(status=502, text="<html>Bad Gateway</html>")
        try:
            result = self._execute(name, fields) if failure != "lose" else None
        except TelegramRefusalError as refusal:
            return _reply(refusal)
        if failure in ("drop", "lose"):
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"ok": True, "result": result})

    def _execute(self, name: str, fields: dict[str, Any]) -> Any:
        if name not in METHODS:
            raise TelegramRefusalError(404, "Not Found")
        try:
            method_model(name).model_validate(
                {key: "attached" if isinstance(value, bytes) else value for key, value in fields.items()}
                | ({"document": "attached"} if name == "sendDocument" else {})
            )
        except ValidationError as error:
            raise TelegramRefusalError(400, f"Bad Request: {error.errors()[0]['loc']} is not valid") from None
        if "chat_id" in fields:
            self._check_chat(name, int(fields["chat_id"]))
            self._check_topic(int(fields["chat_id"]), int(fields.get("message_thread_id") or 0))
        found: Any = getattr(self, "on_" + re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name))(fields)
        return found

    def _check_chat(self, name: str, chat: int) -> None:
        if chat not in self.chats:
            raise TelegramRefusalError(403, "Forbidden: bot can't initiate conversation with a user")
        if name in ("sendMessage", "sendMessageDraft", "sendDocument", "sendInvoice", "editMessageText"):
            left = self._last_call.get(chat, 0.0) + 1.0 - self.clock.now()
            if left > 1e-6:
                raise TelegramRefusalError(429, "Too Many Requests: retry later", math.ceil(left))
            self._last_call[chat] = self.clock.now()

    def _check_topic(self, chat: int, thread: int) -> None:
        if thread and (chat, thread) not in self.threads:
            raise TelegramRefusalError(400, "Bad Request: message thread not found")

    def on_get_me(self, _fields: dict[str, Any]) -> Any:
        return {
            "id": BOT_ID,
            "is_bot": True,
            "first_name": "Bot",
            "username": BOT_NAME,
            "has_topics_enabled": self.topics,
        }

    def on_send_message(self, fields: dict[str, Any]) -> Any:
        _check_text(fields)
        chat = int(fields["chat_id"])
        self.drafts = [one for one in self.drafts if one.chat != chat]
        return self._show(fields, str(fields["text"]))

    def on_send_document(self, fields: dict[str, Any]) -> Any:
        content = next(value for value in fields.values() if isinstance(value, bytes))
        return self._show(fields, str(fields.get("caption", "")), content)

    def on_send_message_draft(self, fields: dict[str, Any]) -> Any:
        chat = int(fields["chat_id"])
        if self.chats[chat] != "private":
            raise TelegramRefusalError(400, "Bad Request: drafts are available in private chats only")
        if int(fields["draft_id"]) == 0:
            raise TelegramRefusalError(400, "Bad Request: draft_id must be non-zero")
        if fields.get("text"):
            _check_text(fields)
        self.drafts.append(
            ShownDraft(
                chat,
                int(fields["draft_id"]),
                str(fields.get("text", "")),
                self.clock.now(),
                bool(fields.get("can_stop")),
            )
        )
        return True

    def visible_draft(self, chat: int = 5) -> str | None:
        """Return the text of the draft that a person sees now."""
        own = [one for one in self.drafts if one.chat == chat]
        return own[-1].text if own and own[-1].at + DRAFT_LIFE_S > self.clock.now() else None

    def on_edit_message_text(self, fields: dict[str, Any]) -> Any:
        _check_text(fields)
        message = self._own(fields)
        buttons = _buttons(fields)
        if (message.text, message.buttons) == (fields["text"], buttons):
            raise TelegramRefusalError(400, "Bad Request: message is not modified")
        message.text, message.buttons, message.edits = str(fields["text"]), buttons, message.edits + 1
        message.entities = fields.get("entities") or []
        return self._sent(message)

    def on_delete_message(self, fields: dict[str, Any]) -> Any:
        del self.messages[self._own(fields).id]
        return True

    def on_answer_callback_query(self, fields: dict[str, Any]) -> Any:
        self.acknowledged.append(str(fields["callback_query_id"]))
        return True

    def on_send_invoice(self, fields: dict[str, Any]) -> Any:
        prices = fields["prices"]
        for name, most in (("title", 32), ("description", 255)):
            if not 1 <= len(str(fields[name])) <= most:
                raise TelegramRefusalError(400, f"Bad Request: the {name} of an invoice has 1 to {most} characters")
        if not 1 <= len(str(fields["payload"]).encode()) <= 128:
            raise TelegramRefusalError(400, "Bad Request: INVOICE_PAYLOAD_INVALID")
        if fields["currency"] != "XTR" or fields.get("provider_token") or len(prices) != 1:
            raise TelegramRefusalError(400, "Bad Request: Stars have one price and no provider")
        if not 1 <= int(prices[0]["amount"]) <= 100_000:
            raise TelegramRefusalError(400, "Bad Request: CURRENCY_TOTAL_AMOUNT_INVALID")
        self.invoices.append(
            ShownInvoice(
                self._number(),
                int(fields["chat_id"]),
                str(fields["title"]),
                str(fields["description"]),
                str(fields["payload"]),
                int(prices[0]["amount"]),
            )
        )
        last = self.invoices[-1]
        return {"message_id": last.id, "date": 1, "chat": {"id": last.chat, "type": self.chats[last.chat]}}

    def on_answer_pre_checkout_query(self, fields: dict[str, Any]) -> Any:
        checkout = self.checkouts.get(str(fields["pre_checkout_query_id"]))
        if checkout is None or checkout.answer is not None or self.clock.now() > checkout.at + 10:
            raise TelegramRefusalError(400, "Bad Request: query is too old or query ID is invalid")
        accepted = str(fields["ok"]).lower() == "true"
        if not accepted and not fields.get("error_message"):
            raise TelegramRefusalError(400, "Bad Request: a refusal needs an error_message")
        checkout.answer = "" if accepted else str(fields["error_message"])
        return True

    def on_refund_star_payment(self, fields: dict[str, Any]) -> Any:
        charge = self.charges.get(str(fields["telegram_payment_charge_id"]))
        if charge is None or charge.person != int(fields["user_id"]):
            raise TelegramRefusalError(400, "Bad Request: CHARGE_NOT_FOUND")
        if charge.refunded:
            raise TelegramRefusalError(400, "Bad Request: CHARGE_ALREADY_REFUNDED")
        charge.refunded = True
        return True

    def on_create_forum_topic(self, fields: dict[str, Any]) -> Any:
        chat, name = int(fields["chat_id"]), str(fields["name"])
        if self.chats[chat] == "private" and not self.topics:
            raise TelegramRefusalError(400, "Bad Request: the chat is not a forum")
        if not 1 <= len(name) <= 128 or not name.strip():
            raise TelegramRefusalError(400, "Bad Request: the name of a topic has 1 to 128 characters")
        thread = self._number()
        self.threads[chat, thread] = name
        return {"message_thread_id": thread, "name": name, "icon_color": 0}

    def on_edit_forum_topic(self, fields: dict[str, Any]) -> Any:
        topic, name = (int(fields["chat_id"]), int(fields["message_thread_id"])), str(fields.get("name") or "")
        if len(name) > 128:
            raise TelegramRefusalError(400, "Bad Request: the name of a topic has at most 128 characters")
        if name and self.threads[topic] == name:
            raise TelegramRefusalError(400, "Bad Request: TOPIC_NOT_MODIFIED")
        self.threads[topic] = name or self.threads[topic]
        return True

    def on_get_file(self, fields: dict[str, Any]) -> Any:
        name = str(fields["file_id"])
        size = self.file_sizes.get(name, len(self.files.get(name, b"")))
        if size > MAX_DOWNLOAD:
            raise TelegramRefusalError(400, "Bad Request: file is too big")
        if name not in self.files:
            raise TelegramRefusalError(400, "Bad Request: invalid file_id")
        return {"file_id": name, "file_unique_id": name, "file_size": size, "file_path": name}

    async def _download(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["path"]])

    async def _poll(self, fields: dict[str, Any]) -> list[dict[str, Any]]:
        offset = int(fields.get("offset") or 0)
        self._updates = {number: one for number, one in self._updates.items() if number >= offset}
        async with self._changed:
            if not self._updates and not self._closed:
                try:
                    await asyncio.wait_for(self._changed.wait(), 5)
                except TimeoutError:
                    return []
            repeated, self._repeated = self._repeated, {}
            if repeated:
                return [repeated]
        return [one for _, one in sorted(self._updates.items())][:100]

    def _show(self, fields: dict[str, Any], text: str, file: bytes | None = None) -> Any:
        reply = fields.get("reply_parameters") or {}
        message = ShownMessage(
            id=self._number(),
            chat=int(fields["chat_id"]),
            text=text,
            at=self.clock.now(),
            thread=int(fields.get("message_thread_id") or 0),
            entities=fields.get("entities") or [],
            buttons=_buttons(fields),
            reply_to=reply.get("message_id"),
            file=file,
        )
        self.messages[message.id] = message
        return self._sent(message)

    def _sent(self, message: ShownMessage) -> Any:
        return {
            "message_id": message.id,
            "date": int(self.clock.now()),
            "chat": {"id": message.chat, "type": self.chats[message.chat]},
            "text": message.text,
        }

    def _own(self, fields: dict[str, Any]) -> ShownMessage:
        message = self.messages.get(int(fields["message_id"]))
        if message is None or message.chat != int(fields["chat_id"]):
            raise TelegramRefusalError(400, "Bad Request: message to edit not found")
        return message

    def _number(self) -> int:
        number, self._next_message = self._next_message, self._next_message + 1
        return number


def _topic(thread: int) -> dict[str, Any]:
    return {"message_thread_id": thread, "is_topic_message": True} if thread else {}


def _person(person: int, language: str) -> dict[str, Any]:
    return {"id": person, "is_bot": False, "first_name": "<b>*Eve*</b>", "language_code": language}


def _entities_of(text: str) -> list[dict[str, Any]]:
    mention = f"@{BOT_NAME}"
    place = text.find(mention)
    if place < 0:
        return []
    units = len(text[:place].encode("utf-16-le")) // 2
    return [{"type": "mention", "offset": units, "length": len(mention)}]


def _decoded(value: Any) -> Any:
    if isinstance(value, web.FileField):
        return value.file.read()
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _buttons(fields: dict[str, Any]) -> dict[str, str]:
    rows = (fields.get("reply_markup") or {}).get("inline_keyboard") or []
    buttons = {one["text"]: one["callback_data"] for row in rows for one in row}
    if any(not 1 <= len(data.encode()) <= 64 for data in buttons.values()):
        raise TelegramRefusalError(400, "Bad Request: BUTTON_DATA_INVALID")
    return buttons


def _check_text(fields: dict[str, Any]) -> None:
    units = str(fields.get("text") or "").encode("utf-16-le")
    if not units.strip(b"\0 \n"):
        raise TelegramRefusalError(400, "Bad Request: message text is empty")
    if len(units) // 2 > 4096:
        raise TelegramRefusalError(400, "Bad Request: message is too long")
    for one in fields.get("entities") or []:
        piece = units[one["offset"] * 2 : (one["offset"] + one["length"]) * 2]
        if one["length"] < 1 or len(piece) != one["length"] * 2:
            raise TelegramRefusalError(400, "Bad Request: can't parse entities: out of range")
        try:
            piece.decode("utf-16-le")
        except UnicodeDecodeError:
            raise TelegramRefusalError(400, "Bad Request: can't parse entities: half a character") from None


def _reply(refusal: TelegramRefusalError) -> web.Response:
    body: dict[str, Any] = {"ok": False, "error_code": refusal.status, "description": str(refusal)}
    if refusal.retry_after is not None:
        body["parameters"] = {"retry_after": refusal.retry_after}
    return web.json_response(body, status=refusal.status)


@asynccontextmanager
async def telegram_server(clock: JumpingClock, *, topics: bool = False) -> AsyncIterator[TelegramServer]:
    """Serve on loopback until the block ends."""
    server = TelegramServer(clock, topics=topics)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await server.close()
        await runner.cleanup()
