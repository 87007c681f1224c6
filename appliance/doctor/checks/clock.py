"""The clock: does somebody set it, and has it gone backwards?"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

from appliance.doctor.check import (
    always,
    check,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, warn
from appliance.doctor.host import CannotLookError, HostReader

UNSYNCHRONISED = 0x40
"""STA_UNSYNC of adjtimex(2): what `timedatectl` calls "System clock synchronized: no"."""


LARGE_ERROR_S = 1.0


STAMP = "/var/lib/systemd/timesync/clock"
"""systemd-timesyncd touches it whenever it has set the clock."""


BACKWARDS_S = 60.0


class _Timex(ctypes.Structure):
    """``struct timex`` of Linux on 64-bit machines."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),
        ("status", ctypes.c_int),
        *((name, ctypes.c_long) for name in ("constant", "precision", "tolerance", "seconds", "microseconds")),
        *((name, ctypes.c_long) for name in ("tick", "ppsfreq", "jitter")),
        ("shift", ctypes.c_int),
        *((name, ctypes.c_long) for name in ("stabil", "jitcnt", "calcnt", "errcnt", "stbcnt")),
        ("tai", ctypes.c_int),
        ("reserved", ctypes.c_int * 11),
    )


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """The kernel's view. ``stamp`` is when the clock was last set, seconds since the epoch."""

    synchronised: bool
    error_s: float
    stamp: float | None


def read_clock(host: HostReader) -> ClockFacts:
    """Ask the kernel, changing nothing (``modes`` is 0)."""
    state = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(state)) < 0:
        raise CannotLookError("adjtimex(2) is refused here", "timedatectl")
    try:
        stamp: float | None = host.path(STAMP).stat().st_mtime
    except OSError:
        stamp = None
    return ClockFacts(not state.status & UNSYNCHRONISED, state.maxerror / 1e6, stamp)


def judge_clock(facts: ClockFacts, now: float) -> Iterator[Finding]:
    """Set by somebody, right within a second, and not behind what it once was."""
    mend = "timedatectl timesync-status; systemctl restart systemd-timesyncd"
    if facts.stamp is not None and facts.stamp - now > BACKWARDS_S:
        yield fail(
            f"{(facts.stamp - now) / 60:.0f} min behind the time at which it was last set",
            meaning=(
                "The VPS refuses the tunnel's handshakes (their time must grow), certificates seem not yet valid."
            ),
            fix=mend,
            cause="clock",
        )
    elif not facts.synchronised:
        yield warn(
            "nobody sets it",
            meaning="It drifts by seconds a day: keys end early or late, rows get "
            "wrong times, and after a power cut the "
            "tunnel may stay down.",
            fix=mend,
        )
    elif facts.error_s > LARGE_ERROR_S:
        yield warn(
            f"right within {facts.error_s:.1f} s only", meaning="The time server answers badly or rarely.", fix=mend
        )
    else:
        yield ok(f"synchronised, right within {facts.error_s * 1000:.0f} ms")


@check(
    "clock",
    looks="the kernel's own word on who sets the clock, and whether it went back",
    means="A clock that went back keeps the tunnel down and certificates invalid.",
    fix="`systemctl restart systemd-timesyncd`",
    requires=always,
    fault_domain="external",
)
def check_clock(context: CheckContext, _: None) -> Iterator[Finding]:
    """The kernel's clock."""
    yield from judge_clock(read_clock(context.host), context.now)
