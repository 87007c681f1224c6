"""A machine of variables under the real decisions: boots as systemd-boot does, can lose power anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from appliance.errors import LoaderError, StoreError
from appliance.upgrade.apply import apply
from appliance.upgrade.state import (
    Action,
    Booted,
    ClearOneshot,
    Event,
    Generation,
    Installed,
    Keep,
    Reboot,
    ReleaseDefault,
    SetDefault,
    SetOneshot,
    SetProfile,
    SwitchBack,
    TrialState,
)
from appliance.upgrade.state_file import StateFile

Health = Literal["good", "fails", "dies-early", "dies-late"]
"""What a generation does when booted: passes; comes up and fails; hangs or panics before or after it is seen."""

Entry = tuple[int, bool]
"""A boot entry: the system's index, and whether it is its rescue entry."""


class PowerCut(Exception):  # noqa: N818 - an event, not an error
    """The power went."""


class Reset(Exception):  # noqa: N818 - an event, not an error
    """The machine reboots because we asked for it."""


@dataclass
class ModelDisk:
    """The record as it is on the disk, which may be full."""

    state: TrialState = field(default_factory=TrialState)
    full: bool = False


@dataclass(frozen=True, slots=True)
class MemoryStateFile(StateFile):
    disk: ModelDisk = field(default_factory=ModelDisk)

    def load(self) -> TrialState:
        return self.disk.state

    def save(self, state: TrialState) -> None:
        if self.disk.full:
            raise StoreError("the disk is full")
        self.disk.state = state

    @contextmanager
    def locked(self) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class System:
    """A built system."""

    health: Health
    enforce: bool = True
    switch_back_works: bool = True


@dataclass
class UpgradeModel:
    """The machine. ``steps_left`` is how many more single writes happen before the power goes."""

    systems: list[System] = field(default_factory=list)
    default: Entry | None = None
    oneshot: Entry | None = None
    conf: Entry | None = None
    profile: int = 0
    kept: int | None = None
    disk: ModelDisk = field(default_factory=ModelDisk)
    booted: Entry = (0, False)
    live: int = 0
    network: bool = True
    resets: int = 0
    requested_reboots: int = 0
    steps_left: int | None = None

    def generation(self, index: int) -> Generation:
        return Generation(f"/nix/store/{index}", index)

    def index(self, generation: Generation) -> int:
        return int(generation.system.rsplit("/", 1)[1])

    def _step(self) -> None:
        """One single write, or the power cut before it."""
        if self.steps_left is not None:
            if self.steps_left == 0:
                raise PowerCut
            self.steps_left -= 1

    def act(self, action: Action) -> None:
        match action:
            case SetDefault(generation, rescue):
                self._step()
                self.default = (self.index(generation), rescue)
                self._step()
                self.conf = self.default
            case ReleaseDefault(generation):
                self._step()
                self.conf = (self.index(generation), False)
                self._step()
                self.default = None
            case SetOneshot(generation):
                self._step()
                self.oneshot = (self.index(generation), False)
            case ClearOneshot():
                self._step()
                self.oneshot = None
            case Keep(generation):
                self._step()
                self.kept = self.index(generation)
            case SetProfile(generation):
                self._step()
                self.profile = self.index(generation)
            case SwitchBack(generation):
                target = self.index(generation)
                if not self.systems[self.live].switch_back_works:
                    self._reset_towards((target, False))
                self.install(target)
                self.live = target
            case Reboot(generation):
                self._reset_towards((self.index(generation), False))

    def _reset_towards(self, entry: Entry) -> None:
        # The guard of the real machine.
        if self.default != entry or self.oneshot is not None or (self.booted, self.live) == (entry, entry[0]):
            raise LoaderError("no reboot")
        self.requested_reboots += 1
        raise Reset

    @property
    def next_entry(self) -> Entry:
        chosen = self.oneshot or self.default or self.conf
        assert chosen is not None
        return chosen

    def boot(self, choice: Entry | None = None) -> None:
        """Come up, through as many resets as that takes."""
        self.steps_left = None
        for _ in range(6):
            entry = choice or self.next_entry
            choice, self.oneshot, self.booted, self.live = None, None, entry, entry[0]
            system = self.systems[entry[0]]
            if not entry[1] and system.health == "dies-early":
                self.resets += 1
                continue
            with suppress(StoreError, LoaderError):
                self.handle(Booted(self.generation(entry[0]), rescue=entry[1]))
            if not entry[1] and system.health == "dies-late":
                self.resets += 1
                continue
            return
        raise AssertionError("the machine reboots for ever")

    def handle(self, event: Event, *, enforce: bool | None = None) -> None:
        mode = self.systems[self.live].enforce if enforce is None else enforce
        apply(event, state_file=MemoryStateFile(disk=self.disk), machine=self, enforce=mode)

    def install(self, index: int, *, again: bool = False) -> None:
        """NixOS's builder, and then our hook as the installed system brings it."""
        self._step()
        self.profile, self.conf = index, (index, False)
        self._step()
        booted = None if self.booted[1] else self.generation(self.booted[0])
        event = Installed(self.generation(index), booted, rescue=True, again=again)
        self.handle(event, enforce=self.systems[index].enforce)
