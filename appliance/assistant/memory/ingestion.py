"""Files of vector stores become passages, in the background: parse, embed, store.

The queue is the table of attachments: those in progress, from the start of the process. A restart continues them.

1. A file that cannot be parsed fails with its code. A revoked or expired key fails its file.
2. If the embedder, the gateway or the database cannot respond, the whole queue pauses, longer each time.
3. A limit of the user pauses the files of this user. A store with vectors of another embedder pauses its file.
4. The result of a file that was attached again, detached, cancelled or deleted meanwhile is discarded.
5. Passages and status change in one transaction, so a search finds the old passages or the new ones.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy import Connection

from appliance.assistant.background import in_background
from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.file_contents import FileContents
from appliance.assistant.memory.embedding_client import Embedding, EmbeddingClient
from appliance.assistant.memory.metrics import MemoryMetrics
from appliance.assistant.parsing.confined import parse_confined
from appliance.assistant.parsing.parsed_passage import ParsedPassage
from appliance.assistant.retrieval.chunking import ChunkSettings
from appliance.assistant.store.files import FileRecord, FileRepository
from appliance.assistant.store.passages import CHUNK, StoredPassage, replace_group
from appliance.assistant.store.vector_stores import StoreFileRecord, VectorStoreRepository
from appliance.errors import ApplianceError, ConflictError, RateLimitError, RequestError, StoreError
from appliance.parsing.file_type import extension_of
from appliance.parsing.limits import UnusableFileError

LOG = logging.getLogger(__name__)
AT_ONCE = 2
EMBEDDED_AT_ONCE = 256
"""Passages between two checks whether the file is still wanted."""
IDLE_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
_KEY_REFUSED = "The key that attached this file is no longer valid; attach the file again."

Place = tuple[str, str]
"""The id of a store and of a file in it."""


@dataclass(frozen=True, slots=True)
class PendingFiles:
    """Files of one tenant that may begin now: their number, and when the first was attached."""

    count: int
    first: float


def next_tenant(
    pending: Mapping[str, PendingFiles], running: Mapping[str, int], served: Mapping[str, float]
) -> str | None:
    """Return the tenant whose file begins next; ``None`` if there is none.

    It is the one with the fewest running files, then the one that was served longest ago, then the one that waits
    longest. A tenant with thousands of files delays others by one file at most.
    """
    waiting = {tenant for tenant, files in pending.items() if files.count > 0}
    return min(
        waiting, key=lambda one: (running.get(one, 0), served.get(one, 0.0), pending[one].first, one), default=None
    )


class IngestionQueue:
    """The queue of one assistant."""

    def __init__(self, context: AssistantContext) -> None:
        self._files = FileRepository(context.database)
        self._stores = VectorStoreRepository(context.database)
        self._contents = FileContents(context.folder)
        self._embedder = context.shared(EmbeddingClient)
        self._metrics = context.shared(MemoryMetrics)
        self._wake = asyncio.Event()
        self._running: dict[Place, asyncio.Task[None]] = {}
        self._tenants: dict[Place, str] = {}
        self._served: dict[str, float] = {}
        self._paused: dict[Place | str, float] = {}
        """End of a pause by place or by tenant, on the monotonic clock; that of all is :attr:`_resume`."""
        self._resume = 0.0
        self._pause_s = FIRST_PAUSE_S

    def wake(self) -> None:
        """Look for new files now."""
        self._wake.set()

    async def run(self) -> None:
        """Process files until the task is cancelled; the processes that parse end with it."""
        try:
            while True:
                self._wake.clear()
                try:
                    while len(self._running) < AT_ONCE and (file := await self._next()) is not None:
                        self._start(file)
                except StoreError as error:
                    self._pause_all(error)
                await self._wait()
        finally:
            tasks = [*self._running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self) -> None:
        """Wait for the end of a file, for :meth:`wake`, or for the end of a pause."""
        ends = [end for end in (self._resume, *self._paused.values()) if end > time.monotonic()]
        timeout = min([IDLE_S, *(end - time.monotonic() for end in ends)])
        wake = asyncio.create_task(self._wake.wait())
        try:
            await asyncio.wait(
                [wake, *self._running.values()],
                timeout=max(timeout, 0.01),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            wake.cancel()

    async def _next(self) -> StoreFileRecord | None:
        now = time.monotonic()
        self._paused = {key: end for key, end in self._paused.items() if end > now}
        if self._resume > now:
            return None
        found = await asyncio.to_thread(self._stores.pending)
        self._served = {tenant: at for tenant, at in self._served.items() if tenant in found}
        skipped = {*self._running, *(key for key in self._paused if isinstance(key, tuple))}
        # A tenant is skipped as a whole, a place only for the tenant that has it.
        held = Counter(self._tenants[place] for place in skipped if place in self._tenants)
        pending = {
            tenant: PendingFiles(count - held[tenant], first)
            for tenant, (count, first) in found.items()
            if tenant not in self._paused
        }
        running = Counter(self._tenants[place] for place in self._running)
        while (tenant := next_tenant(pending, running, self._served)) is not None:
            file = await asyncio.to_thread(self._stores.oldest, tenant, skipped)
            if file is not None:
                return file
            del pending[tenant]
        return None

    def _start(self, file: StoreFileRecord) -> None:
        place = file.store_id, file.file_id
        self._tenants = {one: tenant for one, tenant in self._tenants.items() if one in self._paused} | {
            one: self._tenants[one] for one in self._running
        }
        self._tenants[place] = file.tenant
        self._served[file.tenant] = time.monotonic()
        task = asyncio.create_task(self._process(file))
        self._running[place] = task
        task.add_done_callback(lambda done: self._ended(place, done))

    def _ended(self, place: Place, task: asyncio.Task[None]) -> None:
        del self._running[place]
        if not task.cancelled() and (error := task.exception()) is not None:
            # An error of this program: the file stays in progress, and the others continue.
            LOG.error("the file %s of %s cannot be processed", place[1], place[0], exc_info=error)
            self._paused[place] = time.monotonic() + LONGEST_PAUSE_S

    async def _process(self, file: StoreFileRecord) -> None:
        place = file.store_id, file.file_id
        try:
            await self._ingest(file)
        except UnusableFileError as error:
            await self._fail(file, error.code, str(error))
        except ConflictError as error:
            LOG.warning("the file %s waits: %s", file.file_id, error)
            self._paused[place] = time.monotonic() + LONGEST_PAUSE_S
        except RequestError as error:
            if isinstance(error, RateLimitError) or error.status == 429:
                self._paused[file.tenant] = time.monotonic() + min(error.retry_after or 10.0, LONGEST_PAUSE_S)
            elif error.status in (401, 403):
                await self._fail(file, "server_error", _KEY_REFUSED)
            elif error.status < 500:
                await self._fail(file, "server_error", "The embedder rejects the text of this file.")
            else:
                self._pause_all(error)
        except (ApplianceError, OSError) as error:
            self._pause_all(error)
        else:
            self._metrics.finished_files.labels("completed").inc()
            self._pause_s = FIRST_PAUSE_S

    def _pause_all(self, error: Exception) -> None:
        LOG.warning("files wait %.1f s: %s", self._pause_s, error)
        self._resume = time.monotonic() + self._pause_s
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)

    async def _fail(self, file: StoreFileRecord, code: str, message: str) -> None:
        try:
            await asyncio.to_thread(self._stores.fail, file, code, message)
            self._metrics.finished_files.labels("failed").inc()
        except StoreError as error:
            self._pause_all(error)

    async def _ingest(self, file: StoreFileRecord) -> None:
        record = await asyncio.to_thread(self._files.get, file.tenant, file.file_id, time.time())
        if record is None:
            # Expired: the sweep removes it with its places.
            self._paused[file.store_id, file.file_id] = time.monotonic() + LONGEST_PAUSE_S
            return
        passages = await self._parse(file, record)
        caller = Caller(user=file.tenant, key_id=file.key_id, request_id=f"ingest-{file.file_id[-12:]}")
        vectors: list[Embedding] = []
        for start in range(0, len(passages), EMBEDDED_AT_ONCE):
            if not await self._is_wanted(file):
                return
            texts = [one.indexed_text for one in passages[start : start + EMBEDDED_AT_ONCE]]
            vectors += await self._embedder.documents(caller, texts, background=True)
        await asyncio.to_thread(self._store, file, record, passages, vectors)

    async def _is_wanted(self, file: StoreFileRecord) -> bool:
        present = await asyncio.to_thread(self._stores.get_file, file.tenant, file.store_id, file.file_id)
        return present is not None and (present.status, present.created_at) == ("in_progress", file.created_at)

    async def _parse(self, file: StoreFileRecord, record: FileRecord) -> list[ParsedPassage]:
        settings = ChunkSettings(file.chunking["max_tokens"], file.chunking["overlap_tokens"])
        content = await asyncio.to_thread(self._contents.open, record.id)
        with content:
            return await parse_confined(content, extension_of(record.filename), settings)

    def _store(
        self,
        file: StoreFileRecord,
        record: FileRecord,
        passages: list[ParsedPassage],
        vectors: list[Embedding],
    ) -> None:
        stored = [
            StoredPassage(
                kind=CHUNK,
                source=record.filename,
                text=one.text,
                vector=vector,
                section=one.section,
                indexed_text=one.indexed_text,
                counts=one.terms,
                date=record.created_at,
            )
            for one, vector in zip(passages, vectors, strict=True)
        ]
        fingerprint = self._embedder.fingerprint()

        def write(connection: Connection) -> None:
            replace_group(connection, file.tenant, file.store_id, file.file_id, stored, fingerprint=fingerprint)

        usage = sum(len(one.text.encode()) + one.vector.nbytes for one in stored)
        self._stores.complete(file, usage_bytes=usage, now=time.time(), write=write)


@asynccontextmanager
async def ingesting(context: AssistantContext) -> AsyncIterator[None]:
    """Process the files of vector stores within the block."""
    async with in_background(context.shared(IngestionQueue).run(), "the processing of files"):
        yield
