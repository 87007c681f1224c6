"""Decides when a benchmark must not run on a serving machine. Pure: the caller supplies what it saw.

A look follows each second. The first rule that applies decides:

| # | state of the host | before a cell | during a cell |
|---|---|---|---|
| 1 | the time is outside the window | wait | stop |
| 2 | the gateway does not respond, or is paused | wait | stop |
| 3 | the host runs on its battery | wait | stop |
| 4 | a card has ``hot_c`` or more | wait | stop |
| 5 | a card has less than ``hot_c``, and was hot; it has more than ``cool_c`` | wait | - |
| 6 | requests of users wait, or more than ``users`` of them run, in ``LOUD_LOOKS`` looks in a row | wait | stop |
| 7 | none of these | run | run |

A stopped cell leaves no result, and the run waits until no rule applies for ``quiet_s`` seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LOUD_LOOKS = 2
"""One look may count a request of ours twice: it has ended here, and the gateway still records it."""

DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardRules:
    """The limits. ``users`` is the number of requests of others that may run, ``window`` minutes of a day."""

    users: int = 0
    hot_c: float = 83.0
    cool_c: float = 70.0
    window: tuple[int, int] | None = None
    """Begin and end; a window may contain midnight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardLook:
    """One look. ``others`` and ``waiting`` are requests of users, ``temperature_c`` is that of the hottest card."""

    minute: int
    """Minute of the local day."""
    others: int = 0
    waiting: int = 0
    temperature_c: float | None = None
    on_battery: bool = False
    problem: str = ""
    """Why the gateway takes no requests."""


@dataclass(frozen=True, slots=True)
class GuardState:
    """The memory of the guard between looks."""

    loud: int = 0
    hot: bool = False
    reason: str = ""
    """The obstacle of the last look, empty if there is none."""


def watch(state: GuardState, look: GuardLook, rules: GuardRules) -> GuardState:
    """Return the state after ``look``; the rules are those of the table."""
    hot = look.temperature_c is not None and look.temperature_c >= rules.hot_c
    still = state.hot and look.temperature_c is not None and look.temperature_c > rules.cool_c
    loud = state.loud + 1 if look.waiting or look.others > rules.users else 0
    reason = ""
    if rules.window is not None and not inside(look.minute, rules.window):
        reason = "the time is outside the window"
    elif look.problem:
        reason = look.problem
    elif look.on_battery:
        reason = "the host runs on its battery"
    elif hot or still:
        limit = rules.hot_c if hot else rules.cool_c
        reason = f"a card has {look.temperature_c:.0f} °C, the limit is {limit:.0f}"
    elif loud >= LOUD_LOOKS:
        reason = f"users have {look.others} requests running and {look.waiting} waiting"
    return replace(state, loud=loud, hot=hot or still, reason=reason)


def inside(minute: int, window: tuple[int, int]) -> bool:
    """Return whether ``minute`` is in ``window``, whose end is excluded."""
    begin, end = window
    return begin <= minute < end if begin <= end else minute >= begin or minute < end
