"""Power limits of the cards, for several agents that limit them for reasons of their own.

Each agent records its wish, watts by card, in a file of its own. The limit of a card is the lowest wish, at most
the site's limit and at least the card's floor. An agent that withdraws its wish raises no limit above the wishes of
the others.

A wish ends with its process if that process holds a lock for it (:class:`HeldWish`). So a killed benchmark leaves
no low limit: the next look of an agent skips its wish.

The agents need no lock. An agent writes its wish, sets limits, and reads the wishes again. It ends when the limits
that it set are those of the wishes.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from appliance.catalog.cards import find_card
from appliance.contract.model import Gpu
from appliance.errors import StartError, StoreError, UsageError
from appliance.system import files, lock_file
from appliance.system.bounded_child import BoundedChild, ChildResult

LOG = logging.getLogger(__name__)

FOLDER = Path("/run/appliance-card-power")
"""The wishes of a machine. A reboot empties it, and resets the limits as well."""

TIMEOUT_S = 5.0
"""Seconds that one call of nvidia-smi may take."""

RETRY_S = 10.0
"""Seconds between two attempts to set a limit that the driver refused."""

HOLDER = ".holder"
"""Suffix of the file that a process locks while its wish is in effect."""

AGENT = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class PowerRange:
    """Power limits that are allowed for one card, in watts."""

    floor: int
    """The lowest limit that the card accepts."""
    limit: int
    """The limit without any wish: the site's, or the card's own."""


def power_ranges(gpus: Iterable[Gpu]) -> dict[int, PowerRange]:
    """Return the range of each card of a host; a card that the catalog does not have has none."""
    ranges = {}
    for gpu in gpus:
        try:
            card = find_card(gpu.model)
        except UsageError:
            continue
        ranges[gpu.index] = PowerRange(int(card.min_power_w), gpu.power_limit_w or int(card.tdp_w))
    return ranges


def effective(wishes: Iterable[Mapping[int, int]], ranges: Mapping[int, PowerRange]) -> dict[int, int]:
    """Return the limit of each card in watts: the lowest wish within its range.

    Example::

        effective([{0: 300}, {0: 400}], {0: PowerRange(150, 450), 1: PowerRange(150, 450)}) == {0: 300, 1: 450}
    """
    known = list(wishes)
    return {
        card: max(allowed.floor, min([allowed.limit, *(wish[card] for wish in known if card in wish)]))
        for card, allowed in ranges.items()
    }


def record_wish(folder: Path, agent: str, watts: Mapping[int, int]) -> None:
    """Replace the wish of ``agent``: ``watts`` by card; empty withdraws it.

    Raises :class:`StoreError` if the file cannot be written.
    """
    if not AGENT.fullmatch(agent):
        raise ValueError(f"{agent!r} is not the name of an agent")
    files.make_folder(folder)
    files.replace(folder / f"{agent}.json", msgspec.json.encode(dict(watts)).decode())


def read_wishes(folder: Path) -> dict[str, dict[int, int]]:
    """Return the wishes in ``folder`` by agent.

    The wish of a process that held it and has ended is absent. Raises :class:`StoreError` if a file cannot be read
    or is damaged: a limit that is unknown is not raised.
    """
    wishes = {}
    for file in sorted(folder.glob("[!.]*.json")):
        holder = file.with_suffix(HOLDER)
        if holder.exists() and not lock_file.is_held(holder):
            continue
        content = files.read(file)
        if content is None:
            continue
        try:
            wishes[file.stem] = msgspec.json.decode(content, type=dict[int, int])
        except msgspec.DecodeError as error:
            raise StoreError(f"{file} is damaged ({error}); delete it, and restart its agent") from None
    return wishes


class HeldWish:
    """A wish that is in effect until this process withdraws it or ends, in any way.

    It sets no limit: the agents of the host do, at their next look.

    Example::

        with HeldWish(FOLDER, "bench") as wish:
            wish.set({0: 300})
    """

    def __init__(self, folder: Path, agent: str) -> None:
        self._folder = folder
        self._agent = agent
        self._lock: lock_file.Lock | None = None

    def __enter__(self) -> Self:
        """Take the lock. Raises :class:`StartError` if another process has this wish, and :class:`StoreError`."""
        files.make_folder(self._folder)
        try:
            self._lock = lock_file.take(self._folder / f"{self._agent}{HOLDER}")
        except lock_file.HeldError as held:
            raise StartError(
                f"process {held.note.get('pid', '?')} limits the cards already; wait for its end"
            ) from None
        self._lock.note()
        # A killed process has left its wish, which this lock would put into effect again.
        self.set({})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Withdraw the wish."""
        if self._lock is not None:
            # Released even if the disk is full: a wish without its lock is not in effect.
            try:
                self.set({})
            finally:
                self._lock.release()
                self._lock = None

    def set(self, watts: Mapping[int, int]) -> None:
        """Replace the wish: ``watts`` by card. Raises :class:`StoreError`."""
        record_wish(self._folder, self._agent, watts)


def limit_command(card: int, watts: int) -> list[str]:
    """Return the command that sets the power limit of ``card``."""
    return ["nvidia-smi", "-i", str(card), "-pl", str(watts)]


class CardPower:
    """Sets the limits that follow from all wishes, with one bounded child at a time; never blocks.

    Call :meth:`tick` once a second or so; :meth:`apply` does the same until the limits are set.

    Example::

        power = CardPower(power_ranges(site.hosts["gpu"].gpus))
        power.wish("power", {0: 150, 1: 150})
        power.tick()
    """

    def __init__(self, ranges: Mapping[int, PowerRange], folder: Path = FOLDER) -> None:
        self._ranges = ranges
        self._folder = folder
        self._child = BoundedChild()
        self._setting: tuple[int, int] | None = None
        self._retry_at: dict[int, float] = {}
        self.applied: dict[int, int] = {}
        """Watts by card, as this process set them."""
        self.failures: dict[int, str] = {}
        """Why the limit of a card could not be set, by card. It is set again every :data:`RETRY_S` seconds."""

    @property
    def hanging(self) -> bool:
        """Whether nvidia-smi hangs inside the driver."""
        return self._child.hanging

    def wish(self, agent: str, watts: Mapping[int, int]) -> None:
        """Replace the wish of ``agent``; :meth:`tick` applies it. Raises :class:`StoreError`."""
        record_wish(self._folder, agent, watts)

    def observed(self, card: int, watts: int) -> None:
        """Note the limit that the driver reports for ``card``: if another process changed it, it is set again."""
        if self._setting is None and card in self.applied:
            self.applied[card] = watts

    def unset(self) -> dict[int, int]:
        """Return the watts of the cards whose limit is not yet that of the wishes. Raises :class:`StoreError`."""
        wanted = effective(read_wishes(self._folder).values(), self._ranges)
        return {card: watts for card, watts in wanted.items() if self.applied.get(card) != watts}

    def tick(self) -> None:
        """Take the result of the child, and set the next limit that differs from the wishes.

        Raises :class:`StoreError` if the wishes cannot be read.
        """
        result = self._child.poll()
        if result is not None and self._setting is not None:
            self._finish(*self._setting, result)
        if self._child.busy:
            return
        now = time.monotonic()
        for card, watts in self.unset().items():
            if now >= self._retry_at.get(card, now):
                self._setting = (card, watts)
                self._child.start(limit_command(card, watts), timeout_s=TIMEOUT_S)
                return

    def apply(self, seconds: float = 2 * TIMEOUT_S) -> bool:
        """Call :meth:`tick` until each limit is set or has failed, for at most ``seconds``: at a start or an end.

        Returns whether all limits are those of the wishes. Raises :class:`StoreError`.
        """
        until = time.monotonic() + seconds
        self._retry_at.clear()
        while True:
            self.tick()
            open_cards = self.unset().keys() - self._retry_at.keys()
            if not open_cards or time.monotonic() >= until:
                return not self.unset()
            time.sleep(0.01)

    def _finish(self, card: int, watts: int, result: ChildResult) -> None:
        self._setting = None
        if result.ok:
            self.applied[card] = watts
            self.failures.pop(card, None)
            self._retry_at.pop(card, None)
            LOG.info("card %d: power limit %d W", card, watts)
            return
        output = result.output.strip() or f"nvidia-smi failed with exit code {result.code}"
        reason = "nvidia-smi timed out" if result.timed_out else output.splitlines()[0][:200]
        if self.failures.get(card) != reason:
            LOG.warning("card %d: the power limit of %d W was not set: %s", card, watts, reason)
        self.failures[card] = reason
        self._retry_at[card] = time.monotonic() + RETRY_S


def apply_limits(folder: Path, ranges: Mapping[int, PowerRange], seconds: float = 2 * TIMEOUT_S) -> bool:
    """Set the limits that follow from the wishes in ``folder``, in at most ``seconds``; return whether all are set.

    Raises :class:`StoreError` if the wishes cannot be read.
    """
    return CardPower(ranges, folder).apply(seconds)
