"""State of trials, events and actions. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import msgspec

HISTORY_LIMIT = 50
"""Rolled back generations and unsent alerts that are kept, newest last; older generations are long collected."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One system. Its store path identifies it: the same system has another number when it is built again."""

    system: str
    number: int | None = None

    @property
    def label(self) -> str:
        """Return the name of the generation in messages."""
        return f"generation {self.number}" if self.number is not None else f"the system {self.system}"

    def same(self, other: Generation | None) -> bool:
        """Return whether ``other`` is the same system, under any number."""
        return other is not None and other.system == self.system


class Phase(StrEnum):
    """Progress of a trial."""

    ARMED = "armed"
    """The one-shot entry of the loader names it, so the next boot is its trial boot."""
    BOOTED = "booted"
    """Its trial boot succeeded; the verdict is open."""
    LIVE = "live"
    """It was switched to without a boot; the verdict is open."""
    LIVE_PASSED = "live-passed"
    """It passed after a live switch. A pass does not prove that it boots, so the one-shot entry still names it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A generation on trial. ``armed`` is false if it never was the one-shot entry of the loader."""

    candidate: Generation
    phase: Phase
    armed: bool = True


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A generation that failed, the reason, and the time (ISO 8601)."""

    generation: Generation
    reason: str
    at: str


@dataclass(frozen=True, slots=True)
class SetDefault:
    """Make the entry of ``generation``, or its rescue entry, the default entry."""

    generation: Generation
    rescue: bool = False


class TrialState(msgspec.Struct, frozen=True):
    """The state that survives reboots; the fields are the keys of its file.

    ``held`` is the default entry of the loader as set by this program, ``None`` while NixOS sets it. It names the
    known good generation, or the closest replacement while no generation is known good.
    """

    known_good: Generation | None = msgspec.field(default=None, name="proven")
    """Its key in the file is older than its name; installed hosts have files with that key."""
    trial: Trial | None = None
    rolled_back: tuple[RolledBack, ...] = ()
    held: SetDefault | None = None
    last: str = ""
    """The last decision in one line, for the login screen."""
    unsent: tuple[str, ...] = ()
    """Alerts that the hook or the outbox has not accepted yet: a machine that just booted may have no network."""
    handover: tuple[str, str] | None = None
    """The alert that is being put into the outbox, and its tag there; a repetition has the same tag."""

    def failure_of(self, generation: Generation) -> RolledBack | None:
        """Return the recorded failure of ``generation``, ``None`` if it has none."""
        return next((one for one in self.rolled_back if generation.same(one.generation)), None)


@dataclass(frozen=True, slots=True)
class Installed:
    """The boot loader received ``generation`` as its newest.

    ``booted`` is the generation that runs meanwhile, ``None`` in an installer or a rescue system. ``rescue``: the
    generation has a rescue entry. ``again``: the operator wants to try it although it was rolled back.
    """

    generation: Generation
    booted: Generation | None = None
    rescue: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True)
class Booted:
    """The machine booted ``generation``, or its rescue system."""

    generation: Generation
    rescue: bool = False


@dataclass(frozen=True, slots=True)
class Switched:
    """``generation`` was activated on the running machine."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class SmokeVerdict:
    """The smoke test of the running ``generation`` ended. ``booted``: it runs after a boot, not after a switch."""

    generation: Generation
    passed: bool
    reason: str = ""
    booted: bool = True


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time for a verdict on ``generation``, counted from its boot, is over, and no verdict is pending."""

    generation: Generation


Event: TypeAlias = Installed | Booted | Switched | SmokeVerdict | Deadline


@dataclass(frozen=True, slots=True)
class ReleaseDefault:
    """Return the default entry to NixOS, which would boot ``generation``."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class SetOneshot:
    """Boot ``generation`` once, at the next boot."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class ClearOneshot:
    """Clear a one-shot entry that has not booted yet."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Protect the system from garbage collection and its boot entry from the limit on entries."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class SetProfile:
    """Make ``generation`` the current one of the system profile."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class SwitchBack:
    """Activate ``generation`` on the running machine; reboot, once, if the switch does not succeed."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Reboot:
    """Reboot now into ``generation``, after a check that its entry is the default one."""

    generation: Generation


Action: TypeAlias = (
    SetDefault | ReleaseDefault | SetOneshot | ClearOneshot | Keep | SetProfile | SwitchBack | Reboot
)
