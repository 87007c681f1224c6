"""Notices of a process that must not stop: they wait in memory while the outbox cannot be written."""

from __future__ import annotations

import logging
from collections import deque

from appliance.errors import StoreError
from appliance.notices.notice import Notice
from appliance.notices.outbox import Outbox

LOG = logging.getLogger(__name__)

KEPT = 100
"""Notices that wait in memory at most; the oldest are dropped first."""


class PendingNotices:
    """The way of a watcher to the outbox: a full disk delays its notices and stops nothing."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._waiting: deque[Notice] = deque(maxlen=KEPT)
        self._failing = False

    def put(self, notice: Notice) -> None:
        """Write ``notice`` to the outbox, after the notices that wait; keep it in memory if the disk refuses."""
        self._waiting.append(notice)
        self.flush()

    def flush(self) -> bool:
        """Write the waiting notices; return whether none waits any more. The log has each new failure once."""
        while self._waiting:
            try:
                self._outbox.put(self._waiting[0])
            except StoreError as error:
                if not self._failing:
                    LOG.warning("%d notices wait in memory: %s", len(self._waiting), error)
                self._failing = True
                return False
            self._waiting.popleft()
        self._failing = False
        return True
