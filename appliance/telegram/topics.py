"""Topics of private chats: one conversation each, if the bot has topics enabled at @BotFather.

| event | effect |
|---|---|
| ``/new`` | a new topic; the conversation of the present one stays |
| a message in a topic that the bot does not know | a conversation begins there |
| a turn ends, and the conversation has another title than the topic | the topic gets the title |
| a message for a deleted topic | a topic with its name takes its place; without one, the chat itself |

Telegram may have created a topic without confirming it: the bot does not repeat such a call. A message in that
topic begins a conversation there.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.telegram.channel import Accepted, BotChannel, CallOutcome, Declined, NotAccepted, Throttled
from appliance.telegram.store.turns import TurnStore
from appliance.telegram.updates import ChatPlace

NAME_LENGTH = 128
"""Characters of the longest name of a topic."""

DEFAULT_NAME = "Chat"
"""Name of a topic that takes the place of one whose name the bot does not know."""

LOST = ("thread not found", "topic_id_invalid", "topic_deleted")
"""Parts of Telegram's reasons if a topic does not exist any more."""


def topic_name(title: str) -> str:
    """Return ``title`` as a name that Telegram accepts; empty if it has no visible character."""
    return " ".join(title.split())[:NAME_LENGTH].strip()


def lost_topic(place: ChatPlace, outcome: CallOutcome) -> bool:
    """Return whether ``outcome`` of a call for ``place`` means that this topic of a private chat is deleted."""
    if not isinstance(outcome, Declined) or not place.private or not place.thread_id:
        return False
    return any(reason in outcome.reason.lower() for reason in LOST)


class ChatTopics:
    """The topics of all private chats. ``enabled`` is whether the bot has them, as Telegram reports it."""

    def __init__(self, channel: BotChannel, turns: TurnStore) -> None:
        self._channel = channel
        self._turns = turns
        self._moved: dict[tuple[int, int], int] = {}
        self.enabled = False

    def present(self, place: ChatPlace) -> ChatPlace:
        """Return the place that a deleted topic has now; ``place`` itself if nothing has replaced it."""
        thread = place.thread_id
        while place.private and (place.chat_id, thread) in self._moved:
            thread = self._moved[place.chat_id, thread]
        return ChatPlace(place.chat_id, thread, place.private)

    async def create(self, place: ChatPlace, name: str) -> CallOutcome:
        """Create a topic in the chat of ``place``; an accepted call has its number."""
        return await self._channel.create_topic(place, topic_name(name) or DEFAULT_NAME)

    async def replace(self, place: ChatPlace) -> CallOutcome:
        """Give a deleted topic another place: a new topic, or the chat itself if Telegram refuses one.

        Returns the outcome of the call. The place stays as it is if the call may be repeated.
        """
        name = self._turns.topic_name(place)
        outcome = await self.create(place, name or DEFAULT_NAME)
        if isinstance(outcome, Throttled | NotAccepted):
            return outcome
        thread = outcome.message_id if isinstance(outcome, Accepted) else 0
        self._moved[place.chat_id, place.thread_id] = thread
        if thread:
            self._turns.move_topic(place, thread)
        return outcome

    async def rename(self, chat: int, place: ChatPlace, metadata: Mapping[str, str]) -> CallOutcome | None:
        """Give the topic of ``chat`` the title in its conversation's ``metadata``; ``None`` if it has the title."""
        place, name = self.present(place), topic_name(metadata.get("title", ""))
        if not self.enabled or not place.private or not place.thread_id or not name:
            return None
        if self._turns.topic_name(place) == name:
            return None
        outcome = await self._channel.rename_topic(place, name)
        if not isinstance(outcome, Throttled | NotAccepted):
            # A refused name is not tried again after each turn.
            self._turns.set_chat(chat, topic_name=name)
        return outcome
