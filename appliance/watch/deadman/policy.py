"""Decides what follows from looks at the host at home, its beats and its announcements. Pure: no clock, no socket.

All times are seconds of one clock that is never set back. Three signals prove three things: a response of the
gateway (line, machine and gateway), a handshake (line and machine), a beat (Prometheus and Alertmanager).

The state has two independent parts, the alarm and the announcement:

| alarm | event | alarm afterwards | notice |
|---|---|---|---|
| none | a signal is missing for its limit, not quiet | active, with its cause | alarm |
| none | the same, quiet | none | |
| active | a worse cause is missing for its limit, not quiet | active, with the worse cause | alarm |
| active | a cause of the same or a lesser degree | active | |
| monitoring | every signal present in `returned_looks` looks in a row | none | return, with the duration |
| another cause | the gateway serves in `returned_looks` looks in a row | none; a beat has its limit anew | same |

| announcement | event | announcement afterwards |
|---|---|---|
| any | on-battery, reboot | quiet for the planned time and a boot, `quiet_s` at most |
| any | going-down | quiet for the planned time and a boot, `off_s` at most |
| any | back | quiet for `boot_s` |
| going-down, not left | the host responds `leave_s` later | none: the shutdown did not happen |
| going-down or reboot, left | it responds in `returned_looks` looks in a row | quiet for `quiet_s` more at most |
| the same after the return, back | every signal present in `returned_looks` looks in a row | none |
| any | its time has passed | none; the next line of the first table applies at once |

A gap between two looks (a suspended VPS, a process that was stopped) counts for no signal: the VPS looked at
nothing during it. An announcement ends at its time in any case, so none silences the switch for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

from appliance.watch.announce import AnnouncedKind

ABSENT_AFTER_MISSES = 2
"""Looks without a response that are an absence; a single lost look is not."""
GAP_LOOKS = 3.0
"""Intervals between two looks that are a gap, in addition to :data:`LONGEST_LOOK_S`."""
LONGEST_LOOK_S = 12.0
"""A look at a cut line takes that long at most: its own time is not a gap."""


class ReadyState(StrEnum):
    """The result of one GET /ready through the tunnel."""

    SERVING = "serving"
    DRAINED = "drained"
    """The gateway takes no requests on purpose: drained, paused or stopping."""
    NOT_READY = "not ready"
    """The gateway responds, and an engine is missing."""
    FAILING = "failing"
    """The machine responds, and the gateway does not: refused, silent, or another response."""
    UNREACHABLE = "unreachable"

    @property
    def responds(self) -> bool:
        """Whether the gateway responded."""
        return self in (ReadyState.SERVING, ReadyState.DRAINED, ReadyState.NOT_READY)

    @property
    def as_intended(self) -> bool:
        """Whether the gateway serves, or is paused on purpose."""
        return self in (ReadyState.SERVING, ReadyState.DRAINED)


class SilenceCause(IntEnum):
    """The likely cause of a missing signal, worse ones last."""

    MONITORING = 1
    ENGINES = 2
    GATEWAY = 3
    LINE = 4


@dataclass(frozen=True, slots=True)
class HomeLook:
    """One look at the host at home."""

    ready: ReadyState
    detail: str
    """Result of /ready in a few words."""
    handshake_age_s: float | None = None
    """Seconds since the last handshake; ``None`` if it is unknown or there was none."""


@dataclass(frozen=True, slots=True)
class SwitchLimits:
    """Times of the switch, in seconds."""

    interval_s: float = 20.0
    silent_s: float = 140.0
    """Time without a response of the gateway, or without a beat, after which the switch sends an alarm."""
    misses: int = 3
    """Looks without a response that an alarm needs in any case."""
    not_ready_s: float = 900.0
    """Time for which the gateway may report that it is not ready: engines load for minutes."""
    returned_looks: int = 3
    boot_s: float = 300.0
    """Time that a boot takes until everything serves."""
    quiet_s: float = 900.0
    off_s: float = 12 * 3600.0
    leave_s: float = 600.0
    beat: bool = True
    """Whether beats are expected."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """An announced absence."""

    kind: AnnouncedKind
    at: float
    until: float
    left: bool = False
    """Whether the host has left since."""
    returned: bool = False
    """Whether it has responded again since it left."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that was sent. ``since`` is the time of the last sign of the missing signal."""

    since: float
    cause: SilenceCause


@dataclass(frozen=True, slots=True)
class SwitchState:
    """The state of the switch: times of the last response, of the last time as intended, and of the last beat."""

    looked: float
    responded: float
    served: float
    beat: float
    responding_since: float
    """The first response after an absence. Engines and monitoring have their whole limits from then on."""
    misses: int = 0
    """Looks without a response in a row."""
    responses: int = 0
    """Looks with a response in a row."""
    serving: int = 0
    """Looks in a row at a gateway that serves, or is paused on purpose."""
    present: int = 0
    """Looks with every signal present in a row."""
    alarm: Alarm | None = None
    announcement: Announcement | None = None


@dataclass(frozen=True, slots=True)
class SwitchMessage:
    """A text for the operator."""

    text: str
    ended: bool = False


def started(now: float, *, alarm: Alarm | None = None, announcement: Announcement | None = None) -> SwitchState:
    """Return the state of a switch that starts at ``now``, with what an earlier process left.

    Each signal has its whole limit from ``now`` on.
    """
    return SwitchState(
        looked=now,
        responded=now,
        served=now,
        beat=now,
        responding_since=now,
        alarm=alarm,
        announcement=announcement,
    )


def beaten(state: SwitchState, now: float) -> SwitchState:
    """Return the state after a beat at ``now``."""
    return replace(state, beat=max(now, state.beat))


def announced(
    state: SwitchState, kind: AnnouncedKind, *, planned_s: float, now: float, limits: SwitchLimits
) -> SwitchState:
    """Return the state after an announcement; ``planned_s`` is 0 if the length is unknown."""
    if kind is AnnouncedKind.BACK:
        quiet = limits.boot_s
    else:
        bound = limits.off_s if kind is AnnouncedKind.GOING_DOWN else limits.quiet_s
        quiet = min(planned_s + limits.boot_s, bound) if planned_s > 0 else bound
    return replace(state, announcement=Announcement(kind, at=now, until=now + quiet))


def looked(
    state: SwitchState, look: HomeLook, *, now: float, limits: SwitchLimits, home: str
) -> tuple[SwitchState, tuple[SwitchMessage, ...]]:
    """Return the state after a look at ``now``, and the messages to send; ``home`` is the name of the host."""
    state = _counted(_without_gap(state, now, limits), look, now, limits)
    expired = None
    if state.announcement is not None:
        kept = _kept(state.announcement, state, now, limits)
        if kept is None and now >= state.announcement.until:
            expired = state.announcement
        state = replace(state, announcement=kept)
    if state.alarm is not None and _is_over(state.alarm, state, limits):
        text = f"{home} is back after {duration(now - state.alarm.since)}: {_CAUSES[state.alarm.cause].short}."
        # The service matters first. If its monitoring stays silent, an alarm of its own follows.
        beat = state.beat if state.alarm.cause is SilenceCause.MONITORING else now
        return replace(state, alarm=None, beat=beat), (SwitchMessage(text, ended=True),)
    found = _missing(state, look, now, limits)
    if found is None or state.announcement is not None:
        return state, ()
    if state.alarm is not None and found.cause <= state.alarm.cause:
        return state, ()
    text = _alarm_text(state, look, found, now=now, home=home, expired=expired, limits=limits)
    return replace(state, alarm=Alarm(found.since, found.cause)), (SwitchMessage(text),)


def healthy(state: SwitchState) -> bool:
    """Return whether the operator has no alarm to expect: for the outside ping."""
    return state.alarm is None


def _is_over(alarm: Alarm, state: SwitchState, limits: SwitchLimits) -> bool:
    looks = state.present if alarm.cause is SilenceCause.MONITORING else state.serving
    return looks >= limits.returned_looks


def _without_gap(state: SwitchState, now: float, limits: SwitchLimits) -> SwitchState:
    gap = now - state.looked
    if gap <= GAP_LOOKS * limits.interval_s + LONGEST_LOOK_S:
        return state
    unseen = gap - limits.interval_s
    return replace(
        state,
        responded=state.responded + unseen,
        served=state.served + unseen,
        # A beat may have arrived after the gap, before this look.
        beat=min(state.beat + unseen, now),
        responding_since=state.responding_since + unseen,
        misses=0,
        responses=0,
        serving=0,
        present=0,
    )


def _counted(state: SwitchState, look: HomeLook, now: float, limits: SwitchLimits) -> SwitchState:
    responds, served = look.ready.responds, look.ready.as_intended
    present = served and (not limits.beat or now - state.beat < limits.silent_s)
    return replace(
        state,
        looked=now,
        responded=now if responds else state.responded,
        served=now if served else state.served,
        responding_since=now if responds and state.misses >= ABSENT_AFTER_MISSES else state.responding_since,
        misses=0 if responds else state.misses + 1,
        responses=state.responses + 1 if responds else 0,
        serving=state.serving + 1 if served else 0,
        present=state.present + 1 if present else 0,
    )


def _kept(announcement: Announcement, state: SwitchState, now: float, limits: SwitchLimits) -> Announcement | None:
    """Return the announcement after a look, ``None`` if it ended."""
    one = announcement
    if one.kind in (AnnouncedKind.GOING_DOWN, AnnouncedKind.REBOOT):
        if not one.left and state.misses >= ABSENT_AFTER_MISSES:
            one = replace(one, left=True)
        elif one.left and not one.returned and state.responses >= limits.returned_looks:
            # The shutdown is over: engines and monitoring get the time of a boot, not the rest of half a day.
            one = replace(one, returned=True, until=min(one.until, now + limits.quiet_s))
        elif not one.left and one.kind is AnnouncedKind.GOING_DOWN and now - one.at >= limits.leave_s:
            return None
    over = one.returned or one.kind is AnnouncedKind.BACK
    if now >= one.until or (over and state.present >= limits.returned_looks):
        return None
    return one


@dataclass(frozen=True, slots=True)
class _MissingSignal:
    cause: SilenceCause
    since: float


def _missing(state: SwitchState, look: HomeLook, now: float, limits: SwitchLimits) -> _MissingSignal | None:
    """Return the worst cause whose signal is missing for its limit."""
    if now - state.responded >= limits.silent_s and state.misses >= limits.misses:
        alive = _machine_is_alive(state, look, now, limits)
        return _MissingSignal(SilenceCause.GATEWAY if alive else SilenceCause.LINE, state.responded)
    if not look.ready.responds:
        # A cut line also stops the beats. The response has its limit first, so that the cause is named correctly.
        return None
    unready = max(state.served, state.responding_since)
    if now - unready >= limits.not_ready_s:
        return _MissingSignal(SilenceCause.ENGINES, unready)
    unbeaten = max(state.beat, state.responding_since)
    if limits.beat and now - unbeaten >= limits.silent_s:
        return _MissingSignal(SilenceCause.MONITORING, unbeaten)
    return None


def _machine_is_alive(state: SwitchState, look: HomeLook, now: float, limits: SwitchLimits) -> bool:
    """Return whether the machine gave a sign after the gateway's last one.

    The line may have failed until one look after that; a sign from before proves nothing.
    """
    later = state.responded + 2 * limits.interval_s
    if look.ready is ReadyState.FAILING or (limits.beat and state.beat > later):
        return True
    return look.handshake_age_s is not None and now - look.handshake_age_s > later


@dataclass(frozen=True, slots=True)
class _CauseText:
    short: str
    long: str
    fix: str


_CAUSES = {
    SilenceCause.LINE: _CauseText(
        "it was unreachable",
        "{home} is unreachable for {time}: the line, the router or the machine is down.",
        "Fix: check power and router at home. On the VPS, `appliance doctor --only tunnel` shows the tunnel.",
    ),
    SilenceCause.GATEWAY: _CauseText(
        "its gateway did not respond",
        "The gateway of {home} does not respond for {time}; the machine itself does.",
        "Fix: on {home}, `systemctl status appliance-gateway` and `appliance doctor`.",
    ),
    SilenceCause.ENGINES: _CauseText(
        "its gateway was not ready",
        "The gateway of {home} responds, but is not ready for {time}: an engine is missing.",
        "Fix: on {home}, `appliance models status` and `appliance doctor`.",
    ),
    SilenceCause.MONITORING: _CauseText(
        "its monitoring sent no beat",
        "The monitoring of {home} sent no beat for {time}, so its own alerts may not arrive.",
        "Fix: on {home}, `systemctl status prometheus alertmanager`.",
    ),
}

_EXPIRED = {
    AnnouncedKind.GOING_DOWN: "It announced its shutdown {time} ago and is still off.",
    AnnouncedKind.ON_BATTERY: "It announced {time} ago that mains failed.",
    AnnouncedKind.REBOOT: "It announced a reboot {time} ago.",
    AnnouncedKind.BACK: "It announced its return {time} ago.",
}


def _alarm_text(
    state: SwitchState,
    look: HomeLook,
    found: _MissingSignal,
    *,
    now: float,
    home: str,
    expired: Announcement | None,
    limits: SwitchLimits,
) -> str:
    cause = _CAUSES[found.cause]
    lines = [cause.long.format(home=home, time=duration(now - found.since))]
    if expired is not None:
        lines.append(_EXPIRED[expired.kind].format(time=duration(now - expired.at)))
    handshake = (
        "no handshake is known"
        if look.handshake_age_s is None
        else f"last handshake {duration(look.handshake_age_s)} ago"
    )
    seen = [f"/ready: {look.detail}", handshake]
    if limits.beat:
        seen.append(f"last beat of the monitoring {duration(now - state.beat)} ago")
    lines += [f"Seen from the VPS: {'; '.join(seen)}.", cause.fix.format(home=home)]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a length of time for people: ``160 s``, ``3 min``, ``2 h 5 min``."""
    whole = max(round(seconds), 0)
    if whole < 180:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days {hours % 24} h"
