"""The memory of a role: the stores that it names, searched for one turn. A failure is a state, never an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.chat_context import MemoryCitation, citations, context_block
from appliance.assistant.memory.search import MAX_STORES, StoreSearch
from appliance.assistant.store.stores import memory_stores
from appliance.errors import ApplianceError, RequestError

LOG = logging.getLogger(__name__)

PASSAGES = 8
"""Most passages of a context."""


@dataclass(frozen=True, slots=True)
class RetrievedContext:
    """The result of the memory for one turn: `used`, `none` or `off`; a text for the prompt; citations."""

    state: str
    text: str = ""
    cited: tuple[MemoryCitation, ...] = ()


class RoleMemory:
    """The memories of the roles of one site."""

    def __init__(self, context: AssistantContext) -> None:
        self._context = context
        self._search = context.shared(StoreSearch)

    def remembers(self, model: str) -> bool:
        """Return whether ``model`` is a role with a memory."""
        role = self._context.site.roles.get(model)
        return role is not None and bool(role.memory)

    async def retrieve(
        self, caller: Caller, model: str, queries: Sequence[str], *, first: int = 1
    ) -> RetrievedContext:
        """Return the context for a turn of ``model``; state `none` if it is not a role with a memory.

        Args:
            caller: The user, whose stores are searched and whose key is billed.
            model: The model or role of the turn.
            queries: Formulations of what the user looks for; none for a turn without a message.
            first: Number of the first passage.
        """
        if not self.remembers(model) or not queries:
            return RetrievedContext("none")
        role = self._context.site.roles[model]
        now = datetime.now(UTC)
        try:
            stores = await asyncio.to_thread(self._stores, caller.user, role.memory)
            if not stores:
                return RetrievedContext("none")
            outcome = await self._search.search(caller, stores[:MAX_STORES], queries, limit=PASSAGES, now=now)
        except ApplianceError as error:
            code = error.code if isinstance(error, RequestError) else type(error).__name__
            LOG.warning("request %s: the memory is off for this turn: %s", caller.request_id, code)
            return RetrievedContext("off")
        engines = self._context.site.engines.values()
        longest = min((engine.context for engine in engines if engine.model == role.model), default=0)
        block = context_block(outcome.passages, longest, now=now, first=first)
        if not block.citations:
            return RetrievedContext("none")
        return RetrievedContext("used", block.text, tuple(citations(block, outcome.passages)))

    def _stores(self, tenant: str, sources: tuple[str, ...]) -> list[str]:
        with self._context.database.reading() as connection:
            return memory_stores(connection, tenant, sources)
