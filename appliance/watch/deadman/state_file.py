"""Keeps the alarm and the announcement of the switch over a restart of the process or of the VPS.

The file has times of the wall clock, since no other clock outlives a boot. Each length is limited when it is read,
so that a clock that jumped makes no alarm and no silence endless.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.errors import StoreError
from appliance.system import files
from appliance.watch.announce import AnnouncedKind
from appliance.watch.deadman.policy import Alarm, Announcement, SilenceCause, SwitchLimits, SwitchState, started

LOG = logging.getLogger(__name__)

MAX_AGE_S = 90 * 86400.0


class SavedAlarm(msgspec.Struct, frozen=True):
    """An alarm; ``since`` is in seconds since the epoch."""

    since: float
    cause: int


class SavedAnnouncement(msgspec.Struct, frozen=True):
    """An announcement; ``at`` and ``until`` are in seconds since the epoch."""

    kind: str
    at: float
    until: float
    left: bool
    returned: bool


class SavedSwitch(msgspec.Struct, frozen=True):
    """The content of the file."""

    version: int = 1
    alarm: SavedAlarm | None = None
    announcement: SavedAnnouncement | None = None


@dataclass(frozen=True, slots=True)
class Clocks:
    """One moment on both clocks, in seconds."""

    monotonic: float
    wall: float

    def to_wall(self, when: float) -> float:
        """Return a time of the monotonic clock on the wall clock."""
        return self.wall + when - self.monotonic

    def past(self, when: float) -> float:
        """Return a past time of the wall clock on the monotonic clock, with a limited age."""
        return self.monotonic - min(max(self.wall - when, 0.0), MAX_AGE_S)

    def future(self, when: float, limit_s: float) -> float:
        """Return a time of the wall clock on the monotonic clock, at most ``limit_s`` from now."""
        return self.monotonic + min(max(when - self.wall, 0.0), limit_s)


def saved(state: SwitchState, clocks: Clocks) -> SavedSwitch:
    """Return the part of ``state`` that outlives the process."""
    alarm, one = state.alarm, state.announcement
    return SavedSwitch(
        alarm=None if alarm is None else SavedAlarm(clocks.to_wall(alarm.since), int(alarm.cause)),
        announcement=None
        if one is None
        else SavedAnnouncement(
            str(one.kind), clocks.to_wall(one.at), clocks.to_wall(one.until), one.left, one.returned
        ),
    )


def write(file: Path, state: SwitchState, clocks: Clocks) -> None:
    """Write ``state`` to ``file``. Raises :class:`StoreError` if it cannot be written."""
    files.replace(file, msgspec.json.encode(saved(state, clocks)).decode(), mode=0o600)


def read(file: Path, clocks: Clocks, limits: SwitchLimits) -> SwitchState:
    """Return the state of a switch that starts now, with what ``file`` has.

    A damaged file is set aside, because the switch must start in any case.
    """
    try:
        content = files.read(file)
        if content is None:
            return started(clocks.monotonic)
        return _restored(msgspec.json.decode(content, type=SavedSwitch), clocks, limits)
    except StoreError as error:
        LOG.error("the switch starts without its state: %s", error)  # noqa: TRY400 - the message has the reason
    except (msgspec.MsgspecError, ValueError) as error:
        aside = file.with_name(f"{file.name}.damaged")
        LOG.error("%s is damaged (%s); it is kept as %s", file, error, aside)  # noqa: TRY400
        try:
            files.move(file, aside)
        except StoreError as reason:
            LOG.error("%s", reason)  # noqa: TRY400
    return started(clocks.monotonic)


def _restored(content: SavedSwitch, clocks: Clocks, limits: SwitchLimits) -> SwitchState:
    alarm, one = content.alarm, content.announcement
    return started(
        clocks.monotonic,
        alarm=None if alarm is None else Alarm(clocks.past(alarm.since), SilenceCause(alarm.cause)),
        announcement=None
        if one is None
        else Announcement(
            AnnouncedKind(one.kind),
            at=clocks.past(one.at),
            until=clocks.future(one.until, limits.off_s),
            left=one.left,
            returned=one.returned,
        ),
    )
