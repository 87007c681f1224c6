"""One chat of one person: its updates one after the other, its turns, the end of a running turn."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, TypeAlias

import msgspec

from appliance.errors import RequestError, StoreError
from appliance.telegram.commands import ChatCommands, parsed
from appliance.telegram.earlier_turn import replacing
from appliance.telegram.joining import JOIN_S, continues, joined, may_continue
from appliance.telegram.plan_shop import PlanShop
from appliance.telegram.service import BotService
from appliance.telegram.store.links import PersonLink
from appliance.telegram.store.turns import TurnRecord
from appliance.telegram.texts import LANGUAGES, text
from appliance.telegram.turn_runner import TurnRunner
from appliance.telegram.updates import ChatPlace, IncomingMessage, PressedButton

LOG = logging.getLogger(__name__)

RESUME_S = (1.0, 5.0, 15.0, 60.0)
"""Waits before further attempts to finish an interrupted turn; the last one repeats."""

ChatWork: TypeAlias = IncomingMessage | PressedButton | TurnRecord
"""Updates, and turns that a stop of the bot interrupted."""


class ChatSession:
    """Runs the work of one chat in its order. Its task exists while there is work."""

    def __init__(self, service: BotService, place: ChatPlace, person: int) -> None:
        self._service = service
        self._place = place
        self._person = person
        self._runner = TurnRunner(service, place)
        self._commands = ChatCommands(service, place)
        self._waiting: deque[ChatWork] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether there is no work."""
        return self._task is None or self._task.done()

    def put(self, work: ChatWork) -> None:
        """Add work; an edit of the message whose turn runs ends that turn."""
        current = self._runner.current
        edited = work.message_id if isinstance(work, IncomingMessage) and work.edited else None
        if current is not None and current.turn.message_id == edited:
            current.discard = True
            current.stop.set()
        self._waiting.append(work)
        self._arrived.set()
        if self.idle:
            self._task = asyncio.create_task(self._run())

    def stop(self, turn: int | None = None) -> bool:
        """End the running turn, or only the turn with this number; return whether one was running."""
        current = self._runner.current
        if current is None or (turn is not None and current.turn.id != turn):
            return False
        current.stop.set()
        return True

    async def close(self) -> None:
        """Cancel the work; a restart resumes it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def finished(self) -> None:
        """Wait until there is no work."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._waiting:
            work = self._waiting.popleft()
            try:
                if isinstance(work, TurnRecord):
                    await self._resume(work)
                else:
                    await self._handle(work)
            except StoreError as error:
                LOG.error("an update is not processed: %s", error)  # noqa: TRY400 - the message is the reason
            except Exception:
                # One failed update must not end the chat; the log has no text of a person.
                LOG.exception("an update failed")

    async def _resume(self, turn: TurnRecord) -> None:
        language = str(turn.request.get("language") or LANGUAGES[0])
        attempt = 0
        while True:
            link = self._service.links.of(self._person)
            try:
                await self._runner.resume(turn, link, language)
            except RequestError:
                await self._service.clock.sleep(RESUME_S[min(attempt, len(RESUME_S) - 1)])
                attempt += 1
            else:
                return

    async def _handle(self, work: IncomingMessage | PressedButton) -> None:
        link = self._service.links.of(self._person)
        if link is None:
            self._service.turns.begin(work.update_id)
            return
        try:
            if isinstance(work, PressedButton):
                await self._press(work, link)
            else:
                await self._message(work, link)
        except RequestError as error:
            await self._commands.explain(error, work.language)

    async def _press(self, button: PressedButton, link: PersonLink) -> None:
        if not self._service.turns.begin(button.update_id):
            return
        kind, _, value = button.data.partition(":")
        if kind == "again" and value.isdigit():
            turn = self._service.turns.turn(int(value))
            if turn is not None and self._service.turns.request_again(turn.id, self._person):
                await self._service.delivery.deliver(turn.id, self._place, button.language)
        elif kind == "buy":
            await PlanShop(self._service).send_invoice(button, link)
        elif kind in ("model", "role"):
            chat = self._service.turns.chat(self._place, self._person)
            await self._commands.choose(button, link, chat)

    async def _message(self, message: IncomingMessage, link: PersonLink) -> None:
        turns = self._service.turns
        chat = turns.chat(self._place, self._person)
        command = parsed(message.text) if message.attachment is None else None
        if command is not None and command[0] == "retry":
            await self._repeat(message, link, None)
        elif message.edited:
            await self._edited(message, link)
        elif command is not None and turns.begin(message.update_id):
            if not await self._commands.run(command[0], message, link, chat):
                await self._service.delivery.note(self._place, text("help", message.language))
        elif command is None:
            await self._restored(message, link, chat.id)
            parts = await self._parts(message)
            updates = tuple(part.update_id for part in parts)
            turn = turns.begin_turn(
                chat.id, message.message_id, _request(joined(parts)), self._service.clock.now(), updates
            )
            if turn is not None:
                await self._runner.run(turn, link, message.language)

    async def _restored(self, message: IncomingMessage, link: PersonLink, chat: int) -> None:
        """Bring back a turn whose repetition failed while the gateway could not restore it."""
        last = self._service.turns.last_turn(chat)
        if last is None:
            return
        try:
            await self._runner.restore(last, link)
        except RequestError:
            self._service.turns.begin(message.update_id)
            raise

    async def _parts(self, message: IncomingMessage) -> list[IncomingMessage]:
        """Return ``message`` and the parts that continue it; wait for them if it is nearly full."""
        parts = [message]
        while may_continue(parts[-1]):
            if not self._waiting:
                self._arrived.clear()
                arriving = asyncio.create_task(self._arrived.wait())
                pause = asyncio.create_task(self._service.clock.sleep(JOIN_S))
                await asyncio.wait({arriving, pause}, return_when=asyncio.FIRST_COMPLETED)
                for task in (arriving, pause):
                    task.cancel()
                await asyncio.gather(arriving, pause, return_exceptions=True)
            following = self._waiting[0] if self._waiting else None
            if not isinstance(following, IncomingMessage) or not continues(parts[-1], following):
                break
            self._waiting.popleft()
            parts.append(following)
        return parts

    async def _edited(self, message: IncomingMessage, link: PersonLink) -> None:
        """Repeat the turn of an edited message if it is the last one."""
        chat = self._service.turns.chat(self._place, self._person)
        last = self._service.turns.last_turn(chat.id)
        turn = self._service.turns.turn_of_message(chat.id, message.message_id)
        if turn is None or not message.text:
            # An edit of a command, or of a message before the link.
            self._service.turns.begin(message.update_id)
        elif last is None or last.id != turn.id:
            if self._service.turns.begin(message.update_id):
                await self._service.delivery.note(self._place, text("only_last", message.language))
        elif message.text == turn.request.get("text"):
            # A reaction or a preview of a link also edits a message.
            self._service.turns.begin(message.update_id)
        else:
            await self._repeat(message, link, message.text)

    async def _repeat(self, message: IncomingMessage, link: PersonLink, words: str | None) -> None:
        """Run the last turn again in its place, with other ``words`` if there are any."""
        turns = self._service.turns
        chat = turns.chat(self._place, self._person)
        last = turns.last_turn(chat.id)
        if last is None or not last.request:
            if turns.begin(message.update_id):
                await self._service.delivery.note(self._place, text("nothing_to_retry", message.language))
            return
        try:
            items = await self._runner.items_of(last, link, chat)
        except RequestError:
            turns.begin(message.update_id)
            raise
        request = replacing(dict(last.request) | {"language": message.language}, chat, items, last.request)
        if words is not None:
            request["text"] = words
        turn = turns.begin_turn(chat.id, last.message_id, request, self._service.clock.now(), (message.update_id,))
        if turn is not None:
            await self._runner.run(turn, link, message.language)


def _request(message: IncomingMessage) -> dict[str, Any]:
    """Return the stored request of a turn."""
    attachment = msgspec.to_builtins(message.attachment) if message.attachment is not None else None
    return {"text": message.text, "attachment": attachment, "language": message.language}
