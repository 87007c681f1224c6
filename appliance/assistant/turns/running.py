"""The turns that run in this process, and the events of those that ended lately.

A turn runs in a task of its own: its client may disconnect, the turn decides what that means. Events of background
responses are kept in memory for a resume, the newest responses first, within a limit of bytes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict

from appliance.assistant.caller import Caller
from appliance.assistant.turns.buffer import EventBuffer
from appliance.assistant.turns.request import TurnRequest
from appliance.assistant.turns.turn import ResponseTurn, StopReason, TurnServices
from appliance.errors import DrainingError, RateLimitError, StoreError

LOG = logging.getLogger(__name__)

MAX_BACKGROUND = 100
"""Background responses of one tenant that wait or run."""
KEPT_BYTES = 64 * 2**20
KEPT_BUFFERS = 1000
DAY_S = 86_400
EXPIRY_PAUSE_S = 3600
REPAIR_PAUSE_S = 5


class RunningTurns:
    """All turns of one assistant."""

    def __init__(self, services: TurnServices, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._services = services
        self._running: dict[tuple[str, str], ResponseTurn] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._background: Counter[str] = Counter()
        self._ended: OrderedDict[tuple[str, str], EventBuffer] = OrderedDict()
        self._unstored: set[str] = set()
        """Ids of ended responses whose end the database refused."""
        self._kept_bytes = kept_bytes
        self._stopping = False

    def start(self, caller: Caller, request: TurnRequest) -> ResponseTurn:
        """Start a foreground turn; the caller waits for it or follows its events."""
        self._check_running()
        turn = ResponseTurn(self._services, caller, request)
        self._run(turn)
        return turn

    async def start_background(self, caller: Caller, request: TurnRequest) -> ResponseTurn:
        """Store a background turn as queued and start it.

        Raises :class:`RateLimitError` if the tenant has too many, and the errors of the request itself.
        """
        self._check_running()
        if self._background[caller.user] >= MAX_BACKGROUND:
            raise RateLimitError(
                f"{MAX_BACKGROUND} background responses of this user wait or run; try again later", retry_after=10
            )
        self._background[caller.user] += 1
        try:
            turn = ResponseTurn(self._services, caller, request)
            await turn.enqueue()
        except BaseException:
            self._uncount(caller.user)
            raise
        self._run(turn)
        return turn

    def find(self, tenant: str, identifier: str) -> ResponseTurn | None:
        """Return the turn of a response if it runs here."""
        return self._running.get((tenant, identifier))

    def buffer(self, tenant: str, identifier: str) -> EventBuffer | None:
        """Return the events of a response that runs, or of a background response that ended lately."""
        turn = self.find(tenant, identifier)
        return turn.buffer if turn is not None else self._ended.get((tenant, identifier))

    async def stop(self, tenant: str, identifier: str, reason: StopReason) -> None:
        """Stop the turn of a response, if it runs, and wait for its end."""
        turn = self.find(tenant, identifier)
        if turn is not None:
            turn.stop(reason)
            await turn.done.wait()
        if reason == "deleted":
            self._ended.pop((tenant, identifier), None)

    async def recover(self) -> None:
        """Mark the responses that an earlier process left as failed, and delete expired ones."""
        recovered = await asyncio.to_thread(self._services.store.recover, time.time())
        if recovered:
            LOG.warning("%d responses had not ended when the assistant stopped; they are failed now", recovered)
        await self.expire()

    async def repair(self) -> None:
        """Store the end of responses that the database refused before, for example on a full disk."""
        if not self._unstored:
            return
        ended = frozenset(self._unstored)
        try:
            await asyncio.to_thread(self._services.store.recover, time.time(), ended)
        except StoreError:
            # Its cause is in the log since the turn ended.
            return
        self._unstored -= ended
        LOG.warning("%d responses could not be stored when they ended; they are failed now", len(ended))

    async def expire(self) -> None:
        """Delete responses outside conversations that are older than the site keeps them."""
        days = self._services.context.settings.keep_responses_days
        deleted = await asyncio.to_thread(self._services.store.expire, time.time() - days * DAY_S)
        if deleted:
            LOG.info("%d responses are older than %d days and were deleted", deleted, days)

    async def close(self) -> None:
        """Stop all turns; each one is stored as failed."""
        self._stopping = True
        for turn in list(self._running.values()):
            turn.stop("shutdown")
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _check_running(self) -> None:
        if self._stopping:
            raise DrainingError("the assistant stops; try again shortly", retry_after=5)

    def _run(self, turn: ResponseTurn) -> None:
        key = (turn.caller.user, turn.id)
        self._running[key] = turn
        task = asyncio.create_task(turn.run())
        self._tasks.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            del self._running[key]
            if turn.unstored:
                self._unstored.add(turn.id)
            if turn.request.background:
                self._uncount(turn.caller.user)
                self._keep(key, turn.buffer)
            if not done.cancelled() and done.exception() is not None:
                LOG.error("request %s: a turn did not end", turn.caller.request_id, exc_info=done.exception())

        task.add_done_callback(ended)

    def _uncount(self, tenant: str) -> None:
        self._background[tenant] -= 1
        if not self._background[tenant]:
            del self._background[tenant]

    def _keep(self, key: tuple[str, str], buffer: EventBuffer) -> None:
        self._ended[key] = buffer
        total = sum(one.bytes for one in self._ended.values())
        while total > self._kept_bytes or len(self._ended) > KEPT_BUFFERS:
            total -= self._ended.popitem(last=False)[1].bytes
