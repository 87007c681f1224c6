"""The memory of past chats: conversations that ended become rounds and facts of their tenant's store.

| state | event | next state |
|---|---|---|
| open | `idle_s` without a turn, or close | waiting |
| waiting | its passages and `indexed_at` are stored, in one transaction | indexed |
| waiting | a new turn, or a deletion, before that transaction | open, or none: nothing is stored |
| waiting | the embedder or the gateway fails | waiting, with a pause for its tenant |
| waiting | its key is not valid | waiting, skipped until it has another turn |
| indexed | a new turn | open |

A conversation is indexed by its own key in the background, so its user is billed and others have priority. Rounds
that the memory has already keep their vectors; facts are extracted from new rounds only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from appliance.assistant.background import in_background
from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.embedding_client import Embedding, EmbeddingClient
from appliance.assistant.memory.facts import (
    ExtractedFact,
    clean_title,
    facts_request,
    read_facts,
    read_title,
    title_request,
)
from appliance.assistant.memory.metrics import MemoryMetrics
from appliance.assistant.memory.waiting_chats import WaitingChats
from appliance.assistant.retrieval.chunking import ChatRound, ChunkSettings, chunk_rounds
from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.assistant.store.conversations import ConversationStore
from appliance.assistant.store.ended_chats import (
    EndedChat,
    SpokenMessage,
    last_model,
    put_chat,
    read_messages,
)
from appliance.assistant.store.passages import FACT, ROUND, StoredPassage, passages_of, state_of
from appliance.assistant.store.stores import chats_store_id
from appliance.errors import ApplianceError, NotFoundError, RequestError

LOG = logging.getLogger(__name__)

CHAT_PATH = "/v1/chat/completions"
TENANTS_AT_ONCE = 4
"""Tenants whose conversations are indexed at once, one each."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0
"""The pause of a tenant after a failure; each further failure doubles it."""
LONGEST_POLL_S = 15.0
LETTERS_PER_TOKEN = 3
MAX_PAIRS = 16
"""Pairs of a conversation's metadata."""
REJECTED = (401, 403)
"""Statuses of a key that will not become valid by itself."""


@dataclass(slots=True)
class _Pause:
    """The pause of a tenant, by the clock of the process."""

    until: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _ChatRead:
    """A conversation as the memory reads it before it calls a model."""

    rounds: list[ChatRound]
    old: list[StoredPassage]
    fingerprint: EmbedderFingerprint | None
    """The embedder of the vectors of ``old``."""
    model: str | None


@dataclass(slots=True)
class ChatIndexer:
    """Indexes ended conversations until it is cancelled."""

    context: AssistantContext
    clock: Callable[[], float] = time.time
    _pauses: dict[str, _Pause] = field(default_factory=dict)

    async def run(self) -> None:
        """Index the conversations that wait, then poll; a failure of the database is logged and retried."""
        poll = max(0.05, min(self.context.settings.idle_s / 4, LONGEST_POLL_S))
        while True:
            try:
                done = await self.step()
            except ApplianceError as error:
                LOG.warning("the memory of chats waits: %s", error)
                done = 0
            if not done:
                await asyncio.sleep(poll)

    async def step(self) -> int:
        """Index one conversation of each of a few tenants; return how many are done."""
        now = self.clock()
        queue = self.context.shared(WaitingChats)
        waiting = await asyncio.to_thread(queue.read, now)
        self.context.shared(MemoryMetrics).waiting_conversations.set(await asyncio.to_thread(queue.count, now))
        chosen: dict[str, EndedChat] = {}
        for chat in waiting:
            pause = self._pauses.get(chat.tenant)
            if pause is None or pause.until <= now:
                chosen.setdefault(chat.tenant, chat)
            if len(chosen) == TENANTS_AT_ONCE:
                break
        results = await asyncio.gather(*(self._index(chat) for chat in chosen.values()))
        return sum(results)

    async def _index(self, chat: EndedChat) -> bool:
        """Index one conversation; return whether it is done. Failures are logged without its content."""
        caller = Caller(user=chat.tenant, key_id=chat.key_id, request_id=f"memory-{chat.id[-12:]}")
        try:
            await self.index(chat, caller)
        except RequestError as error:
            if error.status in REJECTED:
                self.context.shared(WaitingChats).skip(chat)
                self.context.shared(MemoryMetrics).skipped_conversations.inc()
                LOG.warning("the memory skips %s: its key %s is not valid (%s)", chat.id, chat.key_id, error.code)
                return False
            self._pause(chat.tenant, error.code, error.retry_after)
            return False
        except ApplianceError as error:
            self._pause(chat.tenant, str(error), None)
            return False
        self._pauses.pop(chat.tenant, None)
        self.context.shared(MemoryMetrics).indexed_conversations.inc()
        return True

    def _pause(self, tenant: str, reason: str, retry_after: float | None) -> None:
        pause = self._pauses.setdefault(tenant, _Pause())
        pause.seconds = min(max(2 * pause.seconds, retry_after or FIRST_PAUSE_S), LONGEST_PAUSE_S)
        pause.until = self.clock() + pause.seconds
        LOG.warning("the memory of a tenant waits for %.0f s: %s", pause.seconds, reason)

    async def index(self, chat: EndedChat, caller: Caller) -> None:
        """Store the rounds and the facts of ``chat``, and give it a title if it has none.

        Raises :class:`RequestError` if a model or the store refuses; nothing has changed then.
        """
        found = await asyncio.to_thread(self._read, chat)
        model = chat.metadata.get("role") or found.model
        title = chat.title or await self._title(caller, found.rounds, model)
        facts = await self._facts(caller, found, title, model)
        rounds = await asyncio.to_thread(_round_passages, found.rounds, title)
        passages, fingerprint = await self._with_vectors(caller, [*rounds, *facts], found)
        await asyncio.to_thread(self._write, chat, passages, fingerprint, title)

    def _read(self, chat: EndedChat) -> _ChatRead:
        with self.context.database.reading() as connection:
            messages = read_messages(connection, chat.tenant, chat.id)
            store_id = chats_store_id(chat.tenant)
            old = [*passages_of(connection, chat.tenant, store_id, group_id=chat.id)]
            state = state_of(connection, chat.tenant, store_id)
            model = last_model(connection, chat.tenant, chat.id)
        return _ChatRead(chat_rounds(messages), old, None if state is None else state.fingerprint, model)

    async def _title(self, caller: Caller, rounds: Sequence[ChatRound], model: str | None) -> str:
        """Return a title for a chat; the beginning of its first message if no model gives one."""
        if not rounds:
            return ""
        fallback = clean_title(rounds[0].user)[:60].strip()
        name = self.context.settings.title_model or model
        if name is None:
            return fallback
        response = await self._complete(caller, title_request(name, rounds))
        return (read_title(response) if response is not None else "") or fallback

    async def _facts(self, caller: Caller, found: _ChatRead, title: str, model: str | None) -> list[StoredPassage]:
        """Return the facts of all rounds: those that the memory has, and those of new rounds."""
        name = self.context.settings.extract_model or model
        known = {one.date for one in found.old if one.kind == ROUND}
        dates = {one.date.timestamp() for one in found.rounds}
        if not known <= dates:
            # A round was deleted, perhaps the source of a fact.
            known = set()
        kept = [one for one in found.old if one.kind == FACT and known]
        new = [one for one in found.rounds if one.date.timestamp() not in known]
        if name is None or not new:
            return kept
        response = await self._complete(caller, facts_request(name, new))
        extracted = read_facts(response, len(new)) if response is not None else []
        subjects = {one.subject for one in extracted}
        facts = [_fact_passage(one, new[one.round].date, title) for one in extracted]
        return [one for one in kept if one.subject not in subjects] + facts

    async def _complete(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return the completion of a background request; None if the engine refuses the request itself."""
        try:
            return await self.context.inference.post(CHAT_PATH, body, caller, background=True)
        except RequestError as error:
            if error.status not in (400, 404, 413, 422):
                raise
            LOG.warning("request %s: a model refuses the memory's request: %s", caller.request_id, error.code)
            return None

    async def _with_vectors(
        self, caller: Caller, passages: Sequence[StoredPassage], found: _ChatRead
    ) -> tuple[list[StoredPassage], EmbedderFingerprint | None]:
        """Return ``passages`` with their vectors and the embedder of these; unchanged texts keep their vectors."""
        texts = [_embedded_text(one) for one in passages]
        known = {_embedded_text(one): one.vector for one in found.old}
        missing = [*dict.fromkeys(text for text in texts if text not in known)]
        # At least one text is embedded: its vector shows the present embedder.
        known |= await self._embed(caller, missing or texts[:1])
        fingerprint = self.context.shared(EmbeddingClient).fingerprint() if texts else None
        if len(missing) < len({*texts}) and fingerprint != found.fingerprint:
            known = await self._embed(caller, [*dict.fromkeys(texts)])
        vectors = [known[text] for text in texts]
        return [replace(one, vector=vector) for one, vector in zip(passages, vectors, strict=True)], fingerprint

    async def _embed(self, caller: Caller, texts: Sequence[str]) -> dict[str, Embedding]:
        try:
            vectors = await self.context.shared(EmbeddingClient).documents(caller, texts)
        except RequestError:
            self.context.shared(MemoryMetrics).embed_failures.inc()
            raise
        return dict(zip(texts, vectors, strict=True))

    def _write(
        self,
        chat: EndedChat,
        passages: Sequence[StoredPassage],
        fingerprint: EmbedderFingerprint | None,
        title: str,
    ) -> None:
        with self.context.database.writing() as connection:
            stored = put_chat(connection, chat, passages, fingerprint=fingerprint, now=self.clock())
        if not stored:
            return
        metrics = self.context.shared(MemoryMetrics)
        for one in passages:
            metrics.indexed_passages.labels(one.kind).inc()
        if title and not chat.title and len(chat.metadata) < MAX_PAIRS:
            try:
                ConversationStore(self.context.database).update(
                    chat.tenant, chat.id, {**chat.metadata, "title": title}
                )
            except NotFoundError:
                LOG.info("%s was deleted before it got a title", chat.id)


def chat_rounds(messages: Sequence[SpokenMessage]) -> list[ChatRound]:
    """Return the rounds of a chat: the messages of the user, and the text of the responses to them.

    A response without a message before it is a round with an empty message.
    """
    found: list[ChatRound] = []
    user: list[SpokenMessage] = []
    for role, group in groupby(messages, key=lambda one: one.role):
        said = [*group]
        if role == "user":
            user = said
            continue
        found.append(_round(user, said))
        user = []
    return [*found, _round(user, [])] if user else found


def _round(user: Sequence[SpokenMessage], responses: Sequence[SpokenMessage]) -> ChatRound:
    begun = min(one.created_at for one in [*user, *responses])
    return ChatRound(
        user="\n".join(one.text for one in user),
        assistant="\n".join(one.text for one in responses),
        date=datetime.fromtimestamp(begun, UTC),
    )


def _round_passages(rounds: Sequence[ChatRound], title: str) -> list[StoredPassage]:
    chunks = chunk_rounds(rounds, ChunkSettings(), lambda text: len(text) // LETTERS_PER_TOKEN, title=title)
    return [
        StoredPassage(
            ROUND,
            title,
            chunk.text,
            indexed_text=chunk.indexed_text,
            date=None if chunk.date is None else chunk.date.timestamp(),
        )
        for chunk in chunks
    ]


def _fact_passage(fact: ExtractedFact, date: datetime, title: str) -> StoredPassage:
    since = date.timestamp()
    return StoredPassage(FACT, title, fact.text, subject=fact.subject, date=since, valid_from=since)


def _embedded_text(passage: StoredPassage) -> str:
    return passage.indexed_text or passage.text


@asynccontextmanager
async def chat_memory(context: AssistantContext) -> AsyncIterator[None]:
    """Index ended conversations while the block runs."""
    async with in_background(ChatIndexer(context).run(), "the memory of chats"):
        yield
