"""Commands and buttons of a linked person. A command runs between the turns of its chat."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from appliance.errors import RequestError
from appliance.telegram.acting import OfferedModel
from appliance.telegram.channel import InlineButton
from appliance.telegram.plan_shop import PlanShop
from appliance.telegram.reply_text import ReplyText, failure
from appliance.telegram.service import BotService
from appliance.telegram.store.links import PersonLink
from appliance.telegram.store.turns import ChatRecord
from appliance.telegram.texts import text
from appliance.telegram.updates import ChatPlace, IncomingMessage, PressedButton

DAY_S = 86400.0
MOST_BUTTONS = 40
LABEL_LENGTH = 60


def parsed(words: str) -> tuple[str, str] | None:
    """Return the command of a text, without its slash, and its argument; ``None`` for other texts."""
    if not words.startswith("/"):
        return None
    name, _, argument = words[1:].partition(" ")
    return name.partition("@")[0].lower(), argument.strip()


class ChatCommands:
    """The commands of one chat that need no turn."""

    def __init__(self, service: BotService, place: ChatPlace) -> None:
        self._service = service
        self._place = place

    async def run(self, name: str, message: IncomingMessage, link: PersonLink, chat: ChatRecord) -> bool:
        """Run the command ``name``; return false if there is none with this name."""
        if name == "new":
            await self._new(message, chat)
        elif name in ("help", "start"):
            await self._note("help", message.language)
        elif name == "usage":
            await self._usage(message)
        elif name == "unlink":
            self._service.links.unlink(person=link.person)
            self._service.turns.forget_chats(link.person)
            await self._note("unlinked", message.language)
        elif name == "plan":
            await PlanShop(self._service).offer(self._place, link, message.language)
        elif name == "paysupport":
            contact = self._service.settings.pay_support
            await self._note("pay_support" if contact else "no_pay_support", message.language, contact=contact)
        elif name in ("model", "role"):
            await self._offer(name, message.language, link, chat)
        else:
            return False
        return True

    async def choose(self, button: PressedButton, link: PersonLink, chat: ChatRecord) -> None:
        """Set the model or role of a button."""
        chosen = button.data.partition(":")[2]
        offered = await self._service.gateway.models(link)
        found = next((one.name for one in offered if _mark(one.name) == chosen), None)
        if found is None:
            await self._note("model_gone", button.language, name="?")
            return
        self._service.turns.set_chat(chat.id, model=found)
        await self._note("chosen", button.language, name=found)

    async def explain(self, error: RequestError, language: str) -> None:
        """Report an error of the gateway."""
        reply = ReplyText()
        reply.fail(error)
        await self._service.delivery.note(self._place, failure(reply, language))

    async def _new(self, message: IncomingMessage, chat: ChatRecord) -> None:
        """Begin a conversation: in a new topic if the chat has topics, otherwise in the place of the old one."""
        service = self._service
        if self._place.private and service.topics.enabled:
            name = text("topic", message.language)
            place = await service.delivery.new_topic(self._place, name)
            if place is not None:
                made = service.turns.chat(place, message.person)
                service.turns.set_chat(made.id, model=chat.model, topic_name=name)
                await service.delivery.note(place, text("new_chat", message.language))
                return
        service.turns.set_chat(chat.id, conversation_id=None, vector_store_id=None)
        await self._note("new_chat", message.language)

    async def _offer(self, what: str, language: str, link: PersonLink, chat: ChatRecord) -> None:
        offered = await self._service.gateway.models(link)
        shown = [one for one in offered if one.task == "generate" and one.role == (what == "role")]
        if not shown:
            await self._note("no_roles" if what == "role" else "no_model", language)
            return
        name = chat.model or self._service.settings.model or text("default", language)
        await self._service.delivery.note(
            self._place, text(f"choose_{what}", language, name=name), _buttons(what, shown)
        )

    async def _usage(self, message: IncomingMessage) -> None:
        now = self._service.clock.now()
        day = self._service.turns.usage(message.person, now - DAY_S)
        month = self._service.turns.usage(message.person, now - 30 * DAY_S)
        await self._note(
            "usage",
            message.language,
            day_turns=day.turns,
            day_tokens=day.tokens,
            month_turns=month.turns,
            month_tokens=month.tokens,
        )

    async def _note(self, words: str, language: str, **values: object) -> None:
        await self._service.delivery.note(self._place, text(words, language, **values))


def _buttons(what: str, offered: Sequence[OfferedModel]) -> list[InlineButton]:
    return [InlineButton(one.name[:LABEL_LENGTH], f"{what}:{_mark(one.name)}") for one in offered[:MOST_BUTTONS]]


def _mark(name: str) -> str:
    """Return a short mark of a model's name: data of a button has at most 64 bytes."""
    return sha256(name.encode()).hexdigest()[:16]
