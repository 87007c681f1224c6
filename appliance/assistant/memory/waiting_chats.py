"""The ended conversations that wait for the memory, without those whose key was rejected."""

from __future__ import annotations

from appliance.assistant.context import AssistantContext
from appliance.assistant.store.ended_chats import EndedChat, count_waiting, read_waiting, still_waiting


class WaitingChats:
    """The queue of one assistant. Any thread may count it; one task reads it and skips its conversations."""

    def __init__(self, context: AssistantContext) -> None:
        self._database, self._idle_s = context.database, context.settings.idle_s
        self._skipped: frozenset[tuple[str, str]] = frozenset()
        """Conversations and their keys that were rejected. They wait, but nothing ends their waiting."""

    def skip(self, chat: EndedChat) -> None:
        """Omit ``chat`` until it has another turn: its key is not valid."""
        self._skipped |= {(chat.id, chat.key_id)}

    def read(self, now: float) -> list[EndedChat]:
        """Return the conversations that wait longest. Raises :class:`StoreError`."""
        with self._database.reading() as connection:
            self._skipped = still_waiting(connection, now, self._idle_s, self._skipped)
            return read_waiting(connection, now, self._idle_s, skipped=self._skipped)

    def count(self, now: float) -> int:
        """Return the number of conversations that the memory can still index. Raises :class:`StoreError`."""
        with self._database.reading() as connection:
            skipped = still_waiting(connection, now, self._idle_s, self._skipped)
            return max(0, count_waiting(connection, now, self._idle_s) - len(skipped))
