"""The clock: whether a time server sets it, and whether it was set back."""

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
"""systemd-timesyncd updates its time whenever it has set the clock."""


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
    """The kernel's view. ``stamp`` is the time when the clock was last set, in seconds since the epoch."""

    synchronised: bool
    error_s: float
    stamp: float | None


def read_clock(host: HostReader) -> ClockFacts:
    """Query the kernel without a change (``modes`` is 0).

    Raises :class:`CannotLookError` if the kernel refuses.
    """
    state = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(state)) < 0:
        raise CannotLookError("adjtimex(2) is refused here", "timedatectl")
    try:
        stamp: float | None = host.path(STAMP).stat().st_mtime
    except OSError:
        stamp = None
    return ClockFacts(not state.status & UNSYNCHRONISED, state.maxerror / 1e6, stamp)


def judge_clock(facts: ClockFacts, now: float) -> Iterator[Finding]:
    """Judge whether the clock is synchronised, exact to a second, and not behind an earlier time."""
    fix = "timedatectl timesync-status; systemctl restart systemd-timesyncd"
    if facts.stamp is not None and facts.stamp - now > BACKWARDS_S:
        yield fail(
            f"{(facts.stamp - now) / 60:.0f} min behind the time at which it was last set",
            meaning=(
                "The VPS rejects the tunnel's handshakes, whose time must increase. "
                "Certificates seem not yet valid."
            ),
            fix=fix,
            cause="clock",
        )
    elif not facts.synchronised:
        yield warn(
            "no time server sets it",
            meaning=(
                "It drifts by seconds a day: keys expire early or late, and usage records get inexact times. "
                "After a power cut the tunnel may stay down."
            ),
            fix=fix,
        )
    elif facts.error_s > LARGE_ERROR_S:
        yield warn(
            f"exact to {facts.error_s:.1f} s only",
            meaning="The time server responds rarely or with a large delay.",
            fix=fix,
        )
    else:
        yield ok(f"synchronised, exact to {facts.error_s * 1000:.0f} ms")


@check(
    "clock",
    looks="whether the kernel's clock is synchronised, and whether it was set back",
    means="A clock that was set back keeps the tunnel down and certificates invalid.",
    fix="`systemctl restart systemd-timesyncd`",
    requires=always,
    fault_domain="external",
)
def check_clock(context: CheckContext, _: None) -> Iterator[Finding]:
    """Check the kernel's clock."""
    yield from judge_clock(read_clock(context.host), context.now)
