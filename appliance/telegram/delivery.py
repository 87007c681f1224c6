"""Delivers messages: at Telegram's pace, each one at most once, and a response whole.

A message that Telegram did not accept is sent again later. A message without a confirmation is not: the person gets
a button that sends it again. The edit of a placeholder has no second effect, so the bot repeats it. A message for a
deleted topic is sent to the place that replaces it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from appliance.telegram.channel import (
    Accepted,
    BotChannel,
    CallOutcome,
    Declined,
    InlineButton,
    NotAccepted,
    Throttled,
    Unconfirmed,
)
from appliance.telegram.clock import BotClock
from appliance.telegram.formatting import FormattedText, plain
from appliance.telegram.metrics import BotMetrics
from appliance.telegram.pacing import ChatPace
from appliance.telegram.store.turns import MessagePart, TurnStore
from appliance.telegram.texts import text
from appliance.telegram.topics import ChatTopics, lost_topic
from appliance.telegram.updates import ChatPlace

LOG = logging.getLogger(__name__)

BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Waits before further attempts; the last one repeats."""

NOTE_ATTEMPTS = 6
"""Attempts for a short note; a response has no limit."""

FILE_NAME = "response.md"


class MessageDelivery:
    """Sends to all chats; one message at a time in each."""

    def __init__(
        self, channel: BotChannel, turns: TurnStore, topics: ChatTopics, clock: BotClock, metrics: BotMetrics
    ) -> None:
        self._channel = channel
        self._turns = turns
        self._topics = topics
        self._clock = clock
        self._metrics = metrics
        self.pace = ChatPace()
        self._locks: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def note(
        self, place: ChatPlace, words: str, buttons: Sequence[InlineButton] = (), *, reply_to: int = 0
    ) -> CallOutcome:
        """Send a short text, without formatting; stop after :data:`NOTE_ATTEMPTS`."""
        outcome: CallOutcome = NotAccepted("not tried")
        for attempt in range(NOTE_ATTEMPTS):
            outcome = await self.paced(
                place, "send", lambda there: self._channel.send(there, plain(words), buttons, reply_to)
            )
            if not await self._repeats(outcome, attempt):
                break
        return outcome

    async def paced(
        self, place: ChatPlace, kind: str, call: Callable[[ChatPlace], Awaitable[CallOutcome]]
    ) -> CallOutcome:
        """Make one call when the chat accepts a message; return its outcome."""
        async with self._turn_in(place):
            return await self._in_topic(place, kind, call)

    async def new_topic(self, place: ChatPlace, name: str) -> ChatPlace | None:
        """Create a topic in a private chat and return its place; ``None`` without Telegram's confirmation."""
        outcome: CallOutcome = NotAccepted("not tried")
        for attempt in range(NOTE_ATTEMPTS):
            async with self._turn_in(place):
                outcome = await self.at_once(place, "topic", lambda: self._topics.create(place, name))
            if not await self._repeats(outcome, attempt):
                break
        if not isinstance(outcome, Accepted):
            LOG.warning("no topic for a new conversation: %s", type(outcome).__name__)
            return None
        return ChatPlace(place.chat_id, outcome.message_id, private=True)

    async def _in_topic(
        self, place: ChatPlace, kind: str, call: Callable[[ChatPlace], Awaitable[CallOutcome]]
    ) -> CallOutcome:
        """Make one call in the present place of a topic; another place replaces a deleted topic."""
        there = self._topics.present(place)
        outcome = await self.at_once(there, kind, lambda: call(there))
        if not lost_topic(there, outcome):
            return outcome
        await self._free(place)
        replaced = await self.at_once(place, "topic", lambda: self._topics.replace(there))
        if self._topics.present(place) == there:
            return replaced
        await self._free(place)
        there = self._topics.present(place)
        return await self.at_once(there, kind, lambda: call(there))

    @asynccontextmanager
    async def _turn_in(self, place: ChatPlace) -> AsyncIterator[None]:
        """Wait until the chat accepts a message; no other message is sent to it within the block."""
        async with self._locks[place.chat_id]:
            await self._free(place)
            yield

    async def _free(self, place: ChatPlace) -> None:
        while (wait_s := self.pace.wait_s(place.chat_id, self._clock.now())) > 0:
            await self._clock.sleep(wait_s)

    async def at_once(self, place: ChatPlace, kind: str, call: Callable[[], Awaitable[CallOutcome]]) -> CallOutcome:
        """Make one call now and record it in the chat's pace."""
        outcome = await call()
        now = self._clock.now()
        self._metrics.count_call(kind, outcome)
        if isinstance(outcome, Throttled):
            LOG.info("Telegram accepts nothing in a chat for %d s", outcome.retry_after_s)
            self.pace.limited(place.chat_id, now, outcome.retry_after_s)
        else:
            self.pace.sent(place.chat_id, now)
        return outcome

    async def deliver(
        self, turn: int, place: ChatPlace, language: str, *, reply_to: int = 0, placeholder: int | None = None
    ) -> None:
        """Send the waiting messages of a turn; the first one replaces the ``placeholder``, if there is one."""
        attempt, unconfirmed = 0, False
        while self._turns.has_part(turn):
            async with self._turn_in(place):
                # The message counts as being sent from here: a stop during the wait leaves no doubt.
                part = self._turns.next_part(turn)
                if part is None:
                    break
                outcome = await self._send_part(part, place, language, reply_to, placeholder)
            if isinstance(outcome, Accepted):
                self._turns.part_sent(part, outcome.message_id)
                attempt = 0
            elif isinstance(outcome, Unconfirmed):
                self._turns.part_unconfirmed(part)
                unconfirmed = True
            elif isinstance(outcome, Declined):
                LOG.warning("Telegram refuses a message: %s", outcome.reason)
                self._turns.part_refused(part)
            else:
                self._turns.part_postponed(part)
                await self._repeats(outcome, attempt)
                attempt += 1
        self._turns.finish(turn)
        if unconfirmed:
            await self.offer_again(turn, place, language)

    async def offer_again(self, turn: int, place: ChatPlace, language: str) -> None:
        """Offer a button that sends the unconfirmed messages of a turn again."""
        await self.note(
            place, text("unconfirmed", language), [InlineButton(text("again", language), f"again:{turn}")]
        )

    async def _send_part(
        self, part: MessagePart, place: ChatPlace, language: str, reply_to: int, placeholder: int | None
    ) -> CallOutcome:
        content = part.content
        if part.number == 0 and placeholder is not None:
            outcome = await self._replace(
                place, placeholder, plain(text("as_file", language)) if part.as_file else content
            )
            if isinstance(outcome, Accepted) and not part.as_file:
                return outcome
        if part.as_file:
            caption = text("as_file", language)
            await self._free(place)
            return await self._in_topic(
                place, "file", lambda there: self._channel.send_file(there, FILE_NAME, content.text, caption)
            )
        first = reply_to if part.number == 0 else 0
        await self._free(place)
        outcome = await self._in_topic(place, "send", lambda there: self._channel.send(there, content, (), first))
        if isinstance(outcome, Declined) and content.entities:
            # The text matters more than its format.
            bare = plain(content.text)
            await self._free(place)
            outcome = await self._in_topic(place, "send", lambda there: self._channel.send(there, bare, (), first))
        return outcome

    async def _replace(self, place: ChatPlace, message_id: int, content: FormattedText) -> CallOutcome:
        """Edit a message until Telegram accepts or refuses that."""
        attempt = 0
        while True:
            await self._free(place)
            outcome = await self.at_once(place, "edit", lambda: self._channel.edit(place, message_id, content))
            if isinstance(outcome, Accepted):
                return Accepted(message_id)
            if isinstance(outcome, Unconfirmed):
                outcome = NotAccepted(outcome.reason)
            if not await self._repeats(outcome, attempt):
                return outcome
            attempt += 1

    async def _repeats(self, outcome: CallOutcome, attempt: int) -> bool:
        """Return whether a call may be repeated, after its wait."""
        if isinstance(outcome, NotAccepted):
            await self._clock.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
            return True
        return isinstance(outcome, Throttled)
