"""Stops the engine units in an outage, and starts those that it stopped: one bounded systemctl at a time.

The units that were stopped are in a file, which is written before they stop. So an agent that is restarted during
an outage starts them all the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from appliance.errors import StoreError
from appliance.system import files
from appliance.system.bounded_child import BoundedChild

LOG = logging.getLogger(__name__)

PREFIX, SUFFIX = "appliance-engine-", ".service"
SYSTEMCTL_S = 20.0
"""Seconds that one systemctl may take; each call only queues a job or shows states."""
RETRY_S = 30.0
"""Seconds between two starts of a unit that does not become active."""


class EngineUnits:
    """The engine units of this host. :meth:`tick` never blocks; call it at each look.

    ``file`` has the stopped units. ``period_s``: seconds between two looks at the states of the units.
    """

    def __init__(self, file: Path, *, period_s: float = 2.0, retry_s: float = RETRY_S) -> None:
        self._file = file
        self._period_s = period_s
        self._retry_s = retry_s
        self._child = BoundedChild()
        self._then = ""
        self._next_look = 0.0
        self._started_at: dict[str, float] = {}
        self._problem = ""
        self.stopped: tuple[str, ...] = _load(file)
        """Units that were stopped and did not return yet."""
        self.active: frozenset[str] = frozenset()
        """Units that run or start, at the last look."""
        self.looked = False
        """Whether :attr:`active` was read since the last change of the order."""
        self._off = False

    @property
    def ready(self) -> bool:
        """Whether every stopped unit runs again."""
        return not self.stopped or (self.looked and not self._off and self.active.issuperset(self.stopped))

    @property
    def replicas(self) -> tuple[str, ...]:
        """Return the names of the replicas whose units were stopped."""
        return tuple(unit.removeprefix(PREFIX).removesuffix(SUFFIX) for unit in self.stopped)

    def forget(self) -> None:
        """Forget all stopped units: they run again."""
        self._keep(())

    def forget_replicas(self, names: Collection[str]) -> None:
        """Forget the stopped units of these replicas: another program starts them."""
        units = {f"{PREFIX}{name}{SUFFIX}" for name in names}
        self._keep(tuple(unit for unit in self.stopped if unit not in units))

    def _keep(self, units: tuple[str, ...]) -> None:
        if units != self.stopped:
            self.stopped = units
            self._save()

    def tick(self, *, off: bool) -> None:
        """Take the result of systemctl, and begin the next step towards engines that are ``off``, or on again."""
        if off is not self._off:
            self._off, self._next_look, self.looked = off, 0.0, False
            self._started_at.clear()
        result = self._child.poll()
        if result is not None:
            # An unknown unit cannot be reset; its start reports it.
            if not result.ok and self._then != "reset":
                self._report(f"systemctl failed: {(result.output.strip() or 'timeout').splitlines()[-1][:200]}")
            elif self._then == "look":
                self._take(result.output)
            elif self._then == "reset":
                self._begin("start", ["start", "--no-block", *self._waiting()])
        now = time.monotonic()
        if self._child.busy or now < self._next_look or not (off or self.stopped):
            return
        self._next_look = now + self._period_s
        self._begin("look", ["show", "--no-pager", "--property=Id,ActiveState,Job", f"{PREFIX}*{SUFFIX}"])

    def cancel(self) -> None:
        """Leave a running systemctl: its job is queued, or the next agent queues it."""
        self._child.cancel()

    def _take(self, output: str) -> None:
        self.active, self.looked = active_units(output), True
        if self._off:
            more = tuple(sorted(self.active - set(self.stopped)))
            self._keep((*self.stopped, *more))
            if self.active:
                LOG.info("stopping %s", ", ".join(sorted(self.active)))
                self._begin("stop", ["stop", "--no-block", *sorted(self.active)])
        elif self._waiting():
            units = self._waiting()
            LOG.info("starting %s", ", ".join(units))
            now = time.monotonic()
            self._started_at.update(dict.fromkeys(units, now))
            # Several outages within an hour must not reach the start limit of the units.
            self._begin("reset", ["reset-failed", *units])

    def _waiting(self) -> list[str]:
        now = time.monotonic()
        return [
            unit
            for unit in self.stopped
            if unit not in self.active
            and (self._then == "reset" or now - self._started_at.get(unit, -self._retry_s) >= self._retry_s)
        ]

    def _begin(self, then: str, words: Sequence[str]) -> None:
        self._then = then
        self._child.start(["systemctl", *words], timeout_s=SYSTEMCTL_S)

    def _save(self) -> None:
        try:
            files.replace(self._file, msgspec.json.encode(self.stopped).decode())
        except StoreError as error:
            self._report(str(error))

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            LOG.warning("engines: %s", problem)
        self._problem = problem


def _load(file: Path) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(files.read(file) or b"[]", type=tuple[str, ...])
    except (StoreError, msgspec.DecodeError) as error:
        LOG.warning("%s is damaged (%s); no engine is started for it", file, error)
        return ()


def active_units(output: str) -> frozenset[str]:
    """Return the units in the output of ``systemctl show`` that run, start, or have a queued job other than a stop.

    Example::

        active_units("Id=a.service\\nActiveState=active\\n\\nId=b.service\\nActiveState=failed") == {"a.service"}
    """
    found = set()
    for block in output.split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if unit.get("ActiveState") in ("active", "activating", "reloading") and "Id" in unit:
            found.add(unit["Id"])
        elif unit.get("ActiveState") == "inactive" and unit.get("Job") and "Id" in unit:
            # A start that waits for another unit, such as the verification of its weights.
            found.add(unit["Id"])
    return frozenset(found)
