"""Shows a response while it is generated: a draft in a private chat, an edited placeholder in a group.

An update is sent at most every :data:`~appliance.telegram.pacing.DRAFT_S` or ``EDIT_S`` seconds, and only if the
text has changed. The first failure ends the display: the whole text follows at the end in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from appliance.telegram.channel import Accepted, CallOutcome, InlineButton, Throttled
from appliance.telegram.formatting import from_markdown
from appliance.telegram.pacing import DRAFT_S, EDIT_S
from appliance.telegram.reply_text import ReplyText
from appliance.telegram.service import BotService
from appliance.telegram.splitting import split
from appliance.telegram.store.turns import TurnRecord
from appliance.telegram.texts import text
from appliance.telegram.updates import ChatPlace


class ProgressDisplay:
    """The display of one turn. ``changed`` is set when the reply has new text."""

    def __init__(
        self, service: BotService, place: ChatPlace, turn: TurnRecord, reply: ReplyText, language: str
    ) -> None:
        self._service = service
        self._place = place
        self._turn = turn
        self._reply = reply
        self._language = language
        self._shown = ""
        self._calling = False
        self._ended = False
        self.changed = asyncio.Event()
        self.placeholder: int | None = None
        """The message that the final text replaces: in groups."""
        self.control: int | None = None
        """The message with the stop button, which is deleted at the end: in private chats without a better one."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Show the reply within the block. A call that has begun ends first, so that no draft follows the text."""
        task = asyncio.create_task(self._show())
        try:
            yield
        finally:
            self._ended = True
            if not self._calling:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            if self.control is not None:
                control, place = self.control, self._place
                await self._service.delivery.at_once(
                    place, "other", lambda: self._service.channel.delete(place, control)
                )

    async def _show(self) -> None:
        private, clock, pace = self._place.private, self._service.clock, self._service.delivery.pace
        pause_s = DRAFT_S if private else EDIT_S
        if not private:
            self.placeholder = await self._button_message(reply_to=self._turn.message_id)
            if self.placeholder is None:
                return
            self._service.turns.set_turn(self._turn.id, placeholder_id=self.placeholder)
            await clock.sleep(pause_s)
        elif not self._service.drafts_stop:
            # Before the first draft, because a message ends a draft.
            self.control = await self._button_message()
        while not self._ended:
            await self.changed.wait()
            self.changed.clear()
            while (wait_s := pace.wait_s(self._place.chat_id, clock.now())) > 0:
                await clock.sleep(wait_s)
            if self._reply.shown == self._shown:
                continue
            outcome = await self._call()
            if isinstance(outcome, Throttled):
                # The text is not shown yet, also if it stays the same until the end of the pause.
                self._shown = ""
                self.changed.set()
                continue
            if not isinstance(outcome, Accepted):
                return
            if not self._ended:
                await clock.sleep(pause_s)

    async def _call(self) -> CallOutcome:
        shown, place, channel = self._reply.shown, self._place, self._service.channel
        pieces = split(from_markdown(shown))
        if not pieces:
            return Accepted()
        self._calling = True
        try:
            if place.private:
                return await self._service.delivery.at_once(
                    place,
                    "draft",
                    lambda: channel.draft(place, self._turn.id, pieces[-1], can_stop=self._service.drafts_stop),
                )
            message, button = self.placeholder or 0, self._stop_button()
            return await self._service.delivery.at_once(
                place, "edit", lambda: channel.edit(place, message, pieces[-1], [button])
            )
        finally:
            self._calling = False
            self._shown = shown

    async def _button_message(self, reply_to: int = 0) -> int | None:
        """Send the message with the stop button; ``None`` if Telegram did not confirm it."""
        self._calling = True
        try:
            outcome = await self._service.delivery.note(
                self._place, text("working", self._language), [self._stop_button()], reply_to=reply_to
            )
        finally:
            self._calling = False
        return outcome.message_id if isinstance(outcome, Accepted) else None

    def _stop_button(self) -> InlineButton:
        return InlineButton(text("stop", self._language), f"stop:{self._turn.id}")
