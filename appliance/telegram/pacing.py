"""When the bot may send to a chat: Telegram's limits, and the pauses that it requested. Pure; times in seconds.

Telegram accepts about one message per second in a chat; drafts and edits count. After a 429 it accepts none until
``retry_after`` is over, which can be minutes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MESSAGE_S = 1.05
"""Seconds between two messages in one chat."""

DRAFT_S = 1.5
"""Seconds between two drafts in a private chat."""

EDIT_S = 3.1
"""Seconds between two edits in a group: Telegram accepts 20 messages per minute there."""

LATE_S = 0.25
"""Seconds added to a pause that Telegram requested: its clock is not this one."""


@dataclass(slots=True)
class ChatPace:
    """The earliest times of the next message in each chat."""

    _free_at: dict[int, float] = field(default_factory=dict)

    def wait_s(self, chat_id: int, now: float) -> float:
        """Return the seconds until the chat accepts a message; 0 if it does now."""
        return max(0.0, self._free_at.get(chat_id, 0.0) - now)

    def sent(self, chat_id: int, now: float) -> None:
        """Record a message, a draft or an edit."""
        if len(self._free_at) > 10_000:
            self._free_at = {chat: at for chat, at in self._free_at.items() if at > now}
        self._free_at[chat_id] = max(self._free_at.get(chat_id, 0.0), now + MESSAGE_S)

    def limited(self, chat_id: int, now: float, retry_after_s: float) -> None:
        """Record that Telegram accepts nothing in the chat for ``retry_after_s``."""
        self._free_at[chat_id] = max(self._free_at.get(chat_id, 0.0), now + retry_after_s + LATE_S)
