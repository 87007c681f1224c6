"""Runs one turn: the input, the response with its display, the messages. A restart resumes it.

:mod:`~appliance.telegram.store.turns` has the states.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from appliance.errors import RequestError
from appliance.telegram.acting import OfferedModel
from appliance.telegram.earlier_turn import EarlierTurn
from appliance.telegram.formatting import FormattedText, from_markdown, plain
from appliance.telegram.progress import ProgressDisplay
from appliance.telegram.reply_text import KEY_GONE, ReplyText, closing
from appliance.telegram.service import BotService
from appliance.telegram.splitting import LIMIT, split
from appliance.telegram.store.links import PersonLink
from appliance.telegram.store.turns import ChatRecord, TurnRecord
from appliance.telegram.texts import text
from appliance.telegram.turn_input import InputMaker, title_of
from appliance.telegram.updates import ChatPlace

LOG = logging.getLogger(__name__)

SETTLE_S = 0.25
SETTLE_ATTEMPTS = 40
"""Reads of a response until the assistant has stored its end, and the seconds between them."""


@dataclass(slots=True)
class RunningTurn:
    """A turn that generates now; ``stop`` ends it early, and ``discard`` drops its text."""

    turn: TurnRecord
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    discard: bool = False


class TurnRunner:
    """Runs the turns of one chat, one after the other."""

    def __init__(self, service: BotService, place: ChatPlace) -> None:
        self._service = service
        self._place = place
        self._earlier = EarlierTurn(service.gateway, service.turns)
        self.current: RunningTurn | None = None

    async def run(self, turn: TurnRecord, link: PersonLink, language: str) -> None:
        """Generate and deliver the response of a new turn."""
        service = self._service
        running = self.current = RunningTurn(turn)
        reply = ReplyText()
        display = ProgressDisplay(service, self._place, turn, reply, language)
        try:
            try:
                final = await self._generate(running, link, language, reply, display)
            except RequestError as error:
                reply.fail(error)
                final = closing(reply, language)
            await self._settle(turn, link, reply)
        finally:
            self.current = None
        end = "stopped" if running.stop.is_set() else reply.status
        service.metrics.turns.labels(end).inc()
        if reply.error_code is not None and reply.error_code not in KEY_GONE:
            LOG.info("a turn failed: %s", reply.error_code)
        service.turns.end_turn(turn.id, [] if running.discard else self._messages(final), reply.tokens)
        await self._deliver(turn, language, display.placeholder)
        await self._name_topic(turn, link)

    async def resume(self, turn: TurnRecord, link: PersonLink | None, language: str) -> None:
        """Finish a turn that a stop of the bot interrupted, with its stored response or a note."""
        if turn.state == "running":
            reply = ReplyText(response_id=turn.response_id)
            if link is not None and turn.response_id is not None:
                try:
                    reply.take(await self._settled(link, turn.response_id))
                except RequestError as error:
                    if error.status in (429, 502, 503, 504):
                        raise
                    reply.fail(error)
            if link is not None:
                await self._earlier.settle(turn, link, replaced=_has_response(reply))
            final = closing(reply, language, restarted=True)
            self._service.turns.end_turn(turn.id, self._messages(final), reply.tokens)
        await self._deliver(turn, language, turn.placeholder_id)

    async def items_of(self, turn: TurnRecord, link: PersonLink, chat: ChatRecord) -> list[dict[str, Any]]:
        """Return the messages of a turn in its conversation; raises :class:`RequestError`."""
        if turn.response_id is None or chat.conversation_id is None:
            return []
        try:
            response = await self._settled(link, turn.response_id)
            items = await self._service.gateway.input_items(link, turn.response_id)
        except RequestError as error:
            if error.status == 404:
                return []
            raise
        # A failed turn is not in its conversation.
        output = response.get("output") or []
        return [] if response.get("status") == "failed" else [one for one in [*items, *output] if one.get("id")]

    async def restore(self, turn: TurnRecord, link: PersonLink) -> None:
        """Restore what ``turn`` removed and could not restore at its end; raises :class:`RequestError`."""
        await self._earlier.settle(turn, link, replaced=False)

    async def _settle(self, turn: TurnRecord, link: PersonLink, reply: ReplyText) -> None:
        """Restore the turn that this one was to replace, unless it has a response."""
        try:
            await self._earlier.settle(turn, link, replaced=_has_response(reply))
        except RequestError as error:
            # The next message of the chat restores it.
            LOG.info("a replaced turn is not restored yet: %s", error.code)

    async def _name_topic(self, turn: TurnRecord, link: PersonLink) -> None:
        """Give the topic of a turn the title of its conversation."""
        service, chat = self._service, self._service.turns.chat_of(turn.chat)
        if not service.topics.enabled or not self._place.private or not chat.thread_id:
            return
        if chat.conversation_id is None:
            return
        try:
            metadata = await service.gateway.conversation_metadata(link, chat.conversation_id)
        except RequestError as error:
            # The next turn names it.
            LOG.info("a topic is not named yet: %s", error.code)
            return
        outcome = await service.topics.rename(chat.id, self._place, metadata)
        if outcome is not None:
            service.metrics.count_call("topic", outcome)

    async def _deliver(self, turn: TurnRecord, language: str, placeholder: int | None) -> None:
        reply_to = 0 if self._place.private else turn.message_id
        await self._service.delivery.deliver(
            turn.id, self._place, language, reply_to=reply_to, placeholder=placeholder
        )

    def _messages(self, markdown: str) -> list[FormattedText]:
        """Return the messages of a response, or its whole text as one part that is sent as a file."""
        whole = from_markdown(markdown)
        most = self._service.settings.max_messages
        if whole.units > most * LIMIT:
            return [plain(markdown)]
        pieces = split(whole)
        return pieces if len(pieces) <= most else [plain(markdown)]

    async def _generate(
        self,
        running: RunningTurn,
        link: PersonLink,
        language: str,
        reply: ReplyText,
        display: ProgressDisplay,
    ) -> str:
        """Return the final Markdown of a turn; raises :class:`RequestError`."""
        service, turn = self._service, running.turn
        chat = service.turns.chat_of(turn.chat)
        name, model = await self._model(link, chat)
        if not name:
            reply.status = "completed"
            return text("no_model", language)
        made = await InputMaker(service, link, chat, language).make(turn.request, model, name)
        if not made.content:
            reply.status = "completed"
            return made.notice
        if made.notice:
            await service.delivery.note(self._place, made.notice)
        chat = service.turns.chat_of(turn.chat)
        await self._earlier.remove(turn, link)
        body: dict[str, Any] = {"model": name, "input": [{"role": "user", "content": list(made.content)}]}
        if chat.vector_store_id is not None:
            body["tools"] = [{"type": "file_search", "vector_store_ids": [chat.vector_store_id]}]
        async with display.running():
            await self._stream(running, link, chat, body, reply, display)
        images = any(part["type"] == "input_image" for part in made.content)
        if reply.status == "failed" and images and reply.rejected:
            return text("no_vision", language, name=name)
        if reply.error_code == "model_not_found":
            return text("model_gone", language, name=name)
        return closing(reply, language, stopped=running.stop.is_set())

    async def _model(self, link: PersonLink, chat: ChatRecord) -> tuple[str, OfferedModel | None]:
        """Return the model or role of a chat; its description only if it costs no request of its own."""
        chosen = chat.model or self._service.settings.model
        if chosen is not None and not self._has_photo(chat):
            return chosen, None
        offered = await self._service.gateway.models(link)
        if chosen is None:
            models = [one for one in offered if one.task == "generate"]
            found = next((one for one in models if not one.role), models[0] if models else None)
            return (found.name, found) if found is not None else ("", None)
        return chosen, next((one for one in offered if one.name == chosen), None)

    def _has_photo(self, chat: ChatRecord) -> bool:
        turn = self._service.turns.last_turn(chat.id)
        attachment = turn.request.get("attachment") if turn is not None else None
        return isinstance(attachment, dict) and attachment.get("kind") == "photo"

    async def _stream(
        self,
        running: RunningTurn,
        link: PersonLink,
        chat: ChatRecord,
        body: dict[str, Any],
        reply: ReplyText,
        display: ProgressDisplay,
    ) -> None:
        """Read the events until the response ends or is stopped; a lost conversation is replaced once."""
        for renewed in (False, True):
            conversation = chat.conversation_id
            if conversation is None or renewed:
                words = str(running.turn.request.get("text") or "")
                conversation = await self._service.gateway.create_conversation(link, {"title": title_of(words)})
                self._service.turns.set_chat(chat.id, conversation_id=conversation)
            reading = asyncio.create_task(
                self._read(running.turn, link, body | {"conversation": conversation}, reply, display)
            )
            stopping = asyncio.create_task(running.stop.wait())
            try:
                await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    return
                await reading
            except RequestError as error:
                if error.status != 404 or error.code == "model_not_found" or renewed:
                    reply.fail(error)
                    return
            else:
                return
            finally:
                for task in (reading, stopping):
                    task.cancel()
                    with suppress(asyncio.CancelledError, RequestError):
                        await task

    async def _read(
        self,
        turn: TurnRecord,
        link: PersonLink,
        body: dict[str, Any],
        reply: ReplyText,
        display: ProgressDisplay,
    ) -> None:
        async with self._service.gateway.turn(link, body) as events:
            async for event in events:
                known = reply.response_id
                reply.apply(event)
                if reply.response_id != known:
                    self._service.turns.set_turn(turn.id, response_id=reply.response_id)
                display.changed.set()
        if reply.status == "in_progress":
            reply.status, reply.error_code = "failed", "server_error"

    async def _settled(self, link: PersonLink, response_id: str) -> dict[str, Any]:
        """Return a stored response after its end; its client may have disconnected a moment ago."""
        for _ in range(SETTLE_ATTEMPTS):
            response = await self._service.gateway.response(link, response_id)
            if response.get("status") not in ("in_progress", "queued"):
                return response
            await self._service.clock.sleep(SETTLE_S)
        return response


def _has_response(reply: ReplyText) -> bool:
    """Return whether the conversation has the turn of ``reply`` with a text."""
    return bool(reply.text.strip()) and reply.status != "failed"
