"""What is known about generations, what can happen to them, and what can be done. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

KEPT = 50
"""Generations that were rolled back and are remembered, newest last; older ones have long been collected."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One system. Its store path is its identity: built again, the same system bears another number."""

    system: str
    number: int | None = None

    @property
    def label(self) -> str:
        """As people call it."""
        return f"generation {self.number}" if self.number is not None else f"the system {self.system}"

    def same(self, other: Generation | None) -> bool:
        """Whether ``other`` is the same system, under whatever number."""
        return other is not None and other.system == self.system


class Phase(StrEnum):
    """How far a trial has come."""

    ARMED = "armed"
    """The next boot is its boot: the loader's one-shot entry names it."""
    BOOTED = "booted"
    """It came up by its trial boot; the verdict is open."""
    LIVE = "live"
    """It was switched to without a boot; the verdict is open."""
    LIVE_PASSED = "live-passed"
    """It passed after a live switch. That it boots is unproven, so the one-shot entry still names it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A generation on trial. ``armed`` is false where the loader was never told of it."""

    candidate: Generation
    phase: Phase
    armed: bool = True


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A generation that failed, why, and when (ISO 8601)."""

    generation: Generation
    reason: str
    at: str


@dataclass(frozen=True, slots=True)
class SetDefault:
    """Make the entry of ``generation`` (or its rescue entry) the one that boots by itself."""

    generation: Generation
    rescue: bool = False


@dataclass(frozen=True, slots=True)
class TrialState:
    """The record that survives reboots.

    ``held`` is what the loader's default entry was set to by us, ``None`` while it is NixOS's. It names the proven
    generation, or what came nearest to it where none was proven yet.
    """

    proven: Generation | None = None
    trial: Trial | None = None
    rolled_back: tuple[RolledBack, ...] = ()
    held: SetDefault | None = None
    last: str = ""
    """The last decision in one line, for the login screen."""
    unsent: tuple[str, ...] = ()
    """Alerts that the hook has not taken yet: a machine that just came back may have no network."""

    def why_not(self, generation: Generation) -> RolledBack | None:
        """The record of ``generation``'s failure, where there is one."""
        return next((one for one in self.rolled_back if generation.same(one.generation)), None)


@dataclass(frozen=True, slots=True)
class Installed:
    """The boot loader was given ``generation`` as its newest.

    ``booted`` is what runs meanwhile, ``None`` in an installer or a rescue system. ``rescue``: the generation
    brings a rescue entry. ``again``: a person wants it tried although it was rolled back.
    """

    generation: Generation
    booted: Generation | None = None
    rescue: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True)
class Booted:
    """The machine came up in ``generation``, or in its rescue system."""

    generation: Generation
    rescue: bool = False


@dataclass(frozen=True, slots=True)
class Switched:
    """``generation`` was activated on the running machine."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class SmokeVerdict:
    """The smoke test of the running ``generation`` ended. ``booted``: it came up by a boot, not by a switch."""

    generation: Generation
    passed: bool
    reason: str = ""
    booted: bool = True


@dataclass(frozen=True, slots=True)
class Deadline:
    """So long after its boot ``generation`` should have had its verdict, and none is on its way."""

    generation: Generation


Event: TypeAlias = Installed | Booted | Switched | SmokeVerdict | Deadline


@dataclass(frozen=True, slots=True)
class ReleaseDefault:
    """Leave the default entry to NixOS again, which would boot ``generation``."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class SetOneshot:
    """Boot ``generation`` once, at the next boot."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class ClearOneshot:
    """Forget a one-shot entry that was not booted yet."""


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
    """Activate ``generation`` on the running machine; reboot, once, where that does not get there."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Reboot:
    """Reboot now, for the default entry is ``generation``'s; whoever acts makes sure of that first."""

    generation: Generation


Action: TypeAlias = (
    SetDefault | ReleaseDefault | SetOneshot | ClearOneshot | Keep | SetProfile | SwitchBack | Reboot
)
