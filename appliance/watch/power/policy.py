"""Decides what follows from a look at the UPS. Pure: from a state and a look to a state and orders.

| phase | condition | next phase |
|---|---|---|
| mains | on battery | battery: minimum watts; the notice on-battery begins an episode |
| battery | on mains | mains; the episode counts this cut, and ends after ``quiet_s`` without a further one |
| battery | ``pause_after_s`` on battery | draining: new requests get 503, running ones finish |
| draining | on battery, and no request runs or ``drain_s`` have passed | idle: engines off, the host waits |
| draining, idle | ``stable_s`` on mains | returning: engines on |
| returning | on battery | draining |
| returning | engines generate tokens, or ``start_s`` have passed | mains: the gateway resumes, full watts |
| any but going-down | on battery, and low, or short, or unreachable | going-down: power off; one notice |
| any but going-down | the UPS reports FSD | going-down: upsmon powers off; one notice |
| going-down | still on battery, each ``retry_s`` | going-down: power off again |
| going-down | ``stable_s`` on mains, and ``abandon_s`` have passed | returning: the machine did not go down |

Low is LB for ``low_s``. Short is a runtime below ``reserve_s``, or a charge below ``reserve_charge`` if the UPS
estimates no runtime, for ``short_s``. Unreachable is ``deadtime_s`` without a reading while the last one was on
battery. A UPS that is unreachable while the last reading was on mains causes a notice and nothing else.

The orders follow from the phase alone, so that a new process continues with the state of the one before it:

| phase | watts | gateway | engines |
|---|---|---|---|
| mains | full, or minimum while the battery is low | open | on |
| battery | minimum | open | on |
| draining, returning | minimum | paused | on |
| idle, going-down | minimum | paused | off |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

import msgspec
from msgspec.structs import replace

from appliance.watch.power.reading import Supply, UpsReading

ON_BATTERY, GOING_DOWN = "on-battery", "going-down"
"""Kinds of notices that page."""
UNREACHABLE, BATTERY, ENGINES = "ups-unreachable", "ups-battery", "power-engines"
"""Kinds of notices for the digest."""

FULL = 0.9
"""A battery with this charge cannot be low: the UPS reports an invalid state."""


class PowerPhase(StrEnum):
    """Progress of an outage."""

    MAINS = "mains"
    BATTERY = "battery"
    DRAINING = "draining"
    IDLE = "idle"
    RETURNING = "returning"
    GOING_DOWN = "going-down"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerTimings:
    """Limits of the policy: seconds, and charges from 0 to 1."""

    pause_after_s: float = 10.0
    drain_s: float = 120.0
    stable_s: float = 30.0
    start_s: float = 900.0
    reserve_s: float = 180.0
    reserve_charge: float = 0.2
    low_s: float = 5.0
    short_s: float = 15.0
    deadtime_s: float = 25.0
    quiet_s: float = 300.0
    unreachable_s: float = 60.0
    complaint_s: float = 60.0
    retry_s: float = 60.0
    abandon_s: float = 600.0
    charge_low: float = 0.3
    charge_enough: float = 0.5
    charging_max_s: float = 6 * 3600.0


class PowerEpisode(msgspec.Struct, frozen=True):
    """Cuts of the power that one notice reports together."""

    began: float
    cuts: int = 1
    battery_s: float = 0.0
    """Seconds on battery in the cuts that have ended."""
    paused: bool = False
    """Whether a cut was long enough for a pause of the gateway."""
    announced: bool = False
    """Whether the last notice was about the present cut."""
    reported: bool = False
    """Whether there was a notice at all."""


class PowerState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The memory of the policy. Times are seconds of the clock that runs since boot."""

    phase: PowerPhase = PowerPhase.MAINS
    since: float = 0.0
    on_battery: bool = False
    """The last known supply."""
    supply_since: float = 0.0
    unreachable_since: float | None = None
    unreachable_reported: bool = False
    low_since: float | None = None
    short_since: float | None = None
    episode: PowerEpisode | None = None
    charging_since: float | None = None
    charging_given_up: bool = False
    complaint: str = ""
    complaint_since: float = 0.0
    complaint_reported: bool = False
    powered_off_at: float | None = None
    fsd_ignored: bool = False
    """An FSD that did not end the machine counts no more until it disappears."""


@dataclass(frozen=True, slots=True)
class PowerLook:
    """One look: the time, the UPS or the ``problem`` that hides it, the requests and the engines."""

    at: float
    ups: UpsReading | None
    problem: str = ""
    in_flight: int | None = None
    """Requests that run in the paused gateway; ``None`` while that is unknown."""
    engines_ready: bool = False
    """Whether the engines that were stopped generate tokens again."""


@dataclass(frozen=True, slots=True)
class PowerMessage:
    """A notice to be sent: its kind, its text, and whether it reports an end."""

    kind: str
    text: str
    ended: bool = False


@dataclass(frozen=True, slots=True)
class PowerOrders:
    """The wanted state of the machine."""

    minimum_watts: bool
    pause: str | None
    """The reason that clients get while the gateway is paused."""
    engines: Literal["on", "off"]


@dataclass(frozen=True, slots=True)
class PowerDecision:
    """The result of a look: the new state, messages in order, and whether to power off now."""

    state: PowerState
    messages: tuple[PowerMessage, ...] = ()
    power_off: bool = False


PAUSED = "The service runs on battery after a power cut; it continues when the power is back"
ENDING = "The machine shuts down because its battery is almost empty; it starts again when the power is back"


def orders(state: PowerState) -> PowerOrders:
    """Return the wanted state of the machine in ``state``."""
    phase = state.phase
    paused = phase not in (PowerPhase.MAINS, PowerPhase.BATTERY)
    reason = ENDING if phase is PowerPhase.GOING_DOWN else PAUSED
    return PowerOrders(
        minimum_watts=phase is not PowerPhase.MAINS or state.charging_since is not None,
        pause=reason if paused else None,
        engines="off" if phase in (PowerPhase.IDLE, PowerPhase.GOING_DOWN) else "on",
    )


def decide(state: PowerState, look: PowerLook, timings: PowerTimings) -> PowerDecision:
    """Return what follows from ``look``; at most one change of the phase."""
    state = _observed(state, look, timings)
    state, notes = _conditions(state, look, timings)
    state, more, power_off = _phase(state, look, timings)
    ended, last = _end_of_episode(state, look.at, timings)
    return PowerDecision(ended, (*notes, *more, *last), power_off)


def _observed(state: PowerState, look: PowerLook, timings: PowerTimings) -> PowerState:
    """Record the supply and since when the battery is low or short."""
    ups, at = look.ups, look.at
    if ups is None:
        return replace(state, unreachable_since=at if state.unreachable_since is None else state.unreachable_since)
    supply = ups.supply
    on_battery = state.on_battery if supply is Supply.UNKNOWN else supply is Supply.BATTERY
    if on_battery is not state.on_battery:
        episode = state.episode
        if on_battery:
            # A cut within the quiet time belongs to the same episode.
            episode = (
                PowerEpisode(at) if episode is None else replace(episode, cuts=episode.cuts + 1, announced=False)
            )
        elif episode is not None:
            episode = replace(episode, battery_s=episode.battery_s + at - state.supply_since)
        state = replace(state, on_battery=on_battery, supply_since=at, episode=episode)
    short = ups.runtime_s < timings.reserve_s if ups.runtime_s is not None else (
        ups.charge is not None and ups.charge < timings.reserve_charge
    )  # fmt: skip
    return replace(
        state,
        unreachable_since=None,
        low_since=_since(state.low_since, on_battery and ups.low, at),
        short_since=_since(state.short_since, on_battery and short, at),
        fsd_ignored=state.fsd_ignored and ups.ending,
    )


def _since(before: float | None, holds: bool, at: float) -> float | None:
    if not holds:
        return None
    return at if before is None else before


def _conditions(
    state: PowerState, look: PowerLook, timings: PowerTimings
) -> tuple[PowerState, tuple[PowerMessage, ...]]:
    """Follow the states that last without an outage: UPS unreachable, battery old or low."""
    messages: list[PowerMessage] = []
    ups, at = look.ups, look.at
    if ups is None:
        lasting = state.unreachable_since is not None and at - state.unreachable_since >= timings.unreachable_s
        if lasting and not state.unreachable_reported:
            state = replace(state, unreachable_reported=True)
            messages.append(
                PowerMessage(
                    UNREACHABLE,
                    f"The UPS cannot be read: {look.problem}. A power cut would not be noticed.",
                )
            )
        return state, tuple(messages)
    if state.unreachable_reported:
        state = replace(state, unreachable_reported=False)
        messages.append(PowerMessage(UNREACHABLE, "The UPS can be read again.", ended=True))
    found = complaint(ups, state.on_battery)
    if found != state.complaint:
        if state.complaint_reported:
            messages.append(PowerMessage(BATTERY, f"Ended: {state.complaint}", ended=True))
        state = replace(state, complaint=found, complaint_since=at, complaint_reported=False)
    elif found and not state.complaint_reported and at - state.complaint_since >= timings.complaint_s:
        state = replace(state, complaint_reported=True)
        messages.append(PowerMessage(BATTERY, found))
    return _charging(state, ups, at, timings), tuple(messages)


def complaint(ups: UpsReading, on_battery: bool) -> str:
    """Return the problem of the battery that ``ups`` reports, with its fix; empty if there is none."""
    if "RB" in ups.status:
        return "The UPS requests a new battery (RB): its runtime is shorter than it reports. Replace the battery."
    if ups.low and not on_battery and ups.charge is not None and ups.charge >= FULL:
        return (
            f"The UPS reports a low battery at {ups.charge:.0%} charge: the next cut ends in a shutdown at once. "
            "Set appliance.power.ups.lowChargePercent."
        )
    return ""


def _charging(state: PowerState, ups: UpsReading, at: float, timings: PowerTimings) -> PowerState:
    """Keep minimum watts while the battery is low on mains, so that the next cut does not end at once."""
    if state.on_battery or ups.charge is None:
        return state
    if ups.charge >= timings.charge_enough:
        return replace(state, charging_since=None, charging_given_up=False)
    if state.charging_since is not None and at - state.charging_since >= timings.charging_max_s:
        # A battery that never gets full must not slow the service down for good.
        return replace(state, charging_since=None, charging_given_up=True)
    if state.charging_since is None and ups.charge < timings.charge_low and not state.charging_given_up:
        return replace(state, charging_since=at)
    return state


PowerStep: TypeAlias = tuple[PowerState, tuple[PowerMessage, ...], bool]
"""The new state, the messages of the change, and whether to power off."""


def _phase(state: PowerState, look: PowerLook, timings: PowerTimings) -> PowerStep:
    critical = _critical(state, look, timings)
    if state.phase is PowerPhase.GOING_DOWN:
        return _going_down(state, look, timings, critical=critical)
    if critical:
        reason = f"The machine shuts down now: {critical}. It starts again when the power is back."
        return _end(replace(state, powered_off_at=look.at), look.at, reason, power_off=True)
    if look.ups is not None and look.ups.ending and not state.fsd_ignored:
        reason = "The machine shuts down now: a shutdown of all machines at the UPS was ordered (FSD)."
        return _end(state, look.at, reason, power_off=False)
    return _STEPS[state.phase](state, look, timings)


def _end(state: PowerState, at: float, reason: str, *, power_off: bool) -> PowerStep:
    episode = replace(state.episode or PowerEpisode(at), paused=True)
    down = _to(replace(state, episode=episode), PowerPhase.GOING_DOWN, at)
    return down, (PowerMessage(GOING_DOWN, reason),), power_off


def _going_down(state: PowerState, look: PowerLook, timings: PowerTimings, *, critical: str) -> PowerStep:
    if _stable(state, look.at, timings) and look.at - state.since >= timings.abandon_s:
        ignored = look.ups is not None and look.ups.ending
        message = PowerMessage(GOING_DOWN, "The machine did not shut down, and the power is back.", ended=True)
        return _to(replace(state, fsd_ignored=ignored), PowerPhase.RETURNING, look.at), (message,), False
    last = state.powered_off_at
    if critical and (last is None or look.at - last >= timings.retry_s):
        return replace(state, powered_off_at=look.at), (), True
    return state, (), False


def _mains(state: PowerState, look: PowerLook, timings: PowerTimings) -> PowerStep:
    if not state.on_battery:
        return state, (), False
    episode = state.episode or PowerEpisode(look.at)
    if episode.reported:
        return _to(state, PowerPhase.BATTERY, look.at), (), False
    state = replace(state, episode=replace(episode, announced=True, reported=True))
    return _to(state, PowerPhase.BATTERY, look.at), (PowerMessage(ON_BATTERY, _began(look.ups, timings)),), False


def _battery(state: PowerState, look: PowerLook, timings: PowerTimings) -> PowerStep:
    if not state.on_battery:
        return _to(state, PowerPhase.MAINS, look.at), (), False
    if look.at - state.supply_since < timings.pause_after_s:
        return state, (), False
    episode = state.episode or PowerEpisode(look.at)
    messages = () if episode.announced else (PowerMessage(ON_BATTERY, _began(look.ups, timings)),)
    episode = replace(episode, paused=True, announced=True, reported=True)
    return _to(replace(state, episode=episode), PowerPhase.DRAINING, look.at), messages, False


def _draining(state: PowerState, look: PowerLook, timings: PowerTimings) -> PowerStep:
    if _stable(state, look.at, timings):
        return _to(state, PowerPhase.RETURNING, look.at), (), False
    lasting = state.on_battery and look.at - state.supply_since >= timings.pause_after_s
    if lasting and (look.in_flight == 0 or look.at - state.since >= timings.drain_s):
        return _to(state, PowerPhase.IDLE, look.at), (), False
    return state, (), False


def _idle(state: PowerState, look: PowerLook, timings: PowerTimings) -> PowerStep:
    if _stable(state, look.at, timings):
        return _to(state, PowerPhase.RETURNING, look.at), (), False
    return state, (), False


def _returning(state: PowerState, look: PowerLook, timings: PowerTimings) -> PowerStep:
    if state.on_battery:
        return _to(state, PowerPhase.DRAINING, look.at), (), False
    if look.engines_ready:
        return _to(state, PowerPhase.MAINS, look.at), (), False
    if look.at - state.since >= timings.start_s:
        text = (
            f"After the power cut, an engine generates no token within {timings.start_s:.0f} s. "
            "`appliance doctor --only gateway` shows which."
        )
        return _to(state, PowerPhase.MAINS, look.at), (PowerMessage(ENGINES, text),), False
    return state, (), False


_STEPS: Mapping[PowerPhase, Callable[[PowerState, PowerLook, PowerTimings], PowerStep]] = {
    PowerPhase.MAINS: _mains,
    PowerPhase.BATTERY: _battery,
    PowerPhase.DRAINING: _draining,
    PowerPhase.IDLE: _idle,
    PowerPhase.RETURNING: _returning,
}


def _stable(state: PowerState, at: float, timings: PowerTimings) -> bool:
    return not state.on_battery and at - state.supply_since >= timings.stable_s


def _critical(state: PowerState, look: PowerLook, timings: PowerTimings) -> str:
    """Return why the battery lasts no longer; empty if it does, and always on mains."""
    if not state.on_battery:
        return ""
    at = look.at
    if state.low_since is not None and at - state.low_since >= timings.low_s:
        return "the UPS reports a low battery"
    if state.short_since is not None and at - state.short_since >= timings.short_s:
        runtime = look.ups.runtime_s if look.ups is not None else None
        left = f"{runtime:.0f} s of runtime are left, " if runtime is not None else "the charge is "
        return f"{left}below the reserve"
    if state.unreachable_since is not None and at - state.unreachable_since >= timings.deadtime_s:
        return "the UPS is unreachable during a power cut"
    return ""


def _to(state: PowerState, phase: PowerPhase, at: float) -> PowerState:
    return replace(state, phase=phase, since=at)


def _began(ups: UpsReading | None, timings: PowerTimings) -> str:
    figures = [] if ups is None else [
        *([f"charge {ups.charge:.0%}"] if ups.charge is not None else []),
        *([f"runtime {_duration(ups.runtime_s)} at the present load"] if ups.runtime_s is not None else []),
    ]  # fmt: skip
    shown = f" ({', '.join(figures)})" if figures else ""
    return (
        f"The power is cut; the machine runs on battery{shown}. The cards run at minimum watts. After "
        f"{timings.pause_after_s:.0f} s new requests get 503, and the engines stop until the power is back."
    )


def _end_of_episode(
    state: PowerState, at: float, timings: PowerTimings
) -> tuple[PowerState, tuple[PowerMessage, ...]]:
    """End the episode: at once after an outage with a pause, otherwise after the quiet time."""
    episode = state.episode
    if episode is None or state.on_battery or state.phase is not PowerPhase.MAINS:
        return state, ()
    quiet = at - state.supply_since >= (timings.stable_s if episode.paused else timings.quiet_s)
    if not quiet:
        return state, ()
    if not episode.reported:
        # A shutdown that was ordered and did not happen: its own message reported the end.
        return replace(state, episode=None), ()
    cuts = "one cut" if episode.cuts == 1 else f"{episode.cuts} cuts"
    effect = "The service is complete again." if episode.paused else "No request was rejected."
    text = f"The power is back: {cuts}, {_duration(episode.battery_s)} on battery in total. {effect}"
    return replace(state, episode=None), (PowerMessage(ON_BATTERY, text, ended=True),)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


def kinds(messages: Iterable[PowerMessage]) -> list[tuple[str, bool]]:
    """Return kind and end of each message, for logs and tests."""
    return [(message.kind, message.ended) for message in messages]
