"""A model of a machine under the real decisions: boots as systemd-boot does and can lose power at any step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from appliance.errors import LoaderError, StoreError
from appliance.upgrade.apply import apply
from appliance.upgrade.nixos import SMOKE_UNIT, VERDICT_UNITS
from appliance.upgrade.state import (
    Action,
    Booted,
    ClearOneshot,
    Event,
    Generation,
    Installed,
    Keep,
    Phase,
    Reboot,
    ReleaseDefault,
    SetDefault,
    SetOneshot,
    SetProfile,
    SwitchBack,
    Trial,
    TrialState,
)
from appliance.upgrade.state_file import StateFile

Health = Literal["good", "fails", "dies-early", "dies-late"]
"""Behaviour after the boot: the smoke test passes or fails, or the system stops before or after its units start."""

Entry = tuple[int, bool]
"""A boot entry: the system's index, and whether it is its rescue entry."""


class PowerCut(Exception):  # noqa: N818 - an event, not an error
    """The power failed."""


class Reset(Exception):  # noqa: N818 - an event, not an error
    """The machine reboots by request of the code under test."""


@dataclass
class ModelDisk:
    """The state on a disk that may be full."""

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
    """The machine. ``steps_left``: number of single writes until the power fails, ``None`` for no failure."""

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
        """Make one single write, or fail the power before it."""
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
        # The same guard as in appliance/upgrade/nixos.py.
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
        """Boot, with as many resets as needed."""
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
        raise AssertionError("the machine reboots forever")

    def handle(self, event: Event, *, enforce: bool | None = None) -> None:
        mode = self.systems[self.live].enforce if enforce is None else enforce
        apply(event, state_file=MemoryStateFile(disk=self.disk), machine=self, enforce=mode)

    def install(self, index: int, *, again: bool = False) -> None:
        """Run NixOS's builder, then the hook of the installed system."""
        self._step()
        self.profile, self.conf = index, (index, False)
        self._step()
        booted = None if self.booted[1] else self.generation(self.booted[0])
        event = Installed(self.generation(index), booted, rescue=True, again=again)
        self.handle(event, enforce=self.systems[index].enforce)


OLD, NEW = Generation("/nix/store/old", 7), Generation("/nix/store/new", 8)
HELD = TrialState(known_good=OLD, held=SetDefault(OLD))


def on_trial(phase: Phase) -> TrialState:
    return TrialState(known_good=OLD, held=SetDefault(OLD), trial=Trial(NEW, phase))


PASSED, FAILED = VERDICT_UNITS


def systemctl_show(
    smoke: str, passed: str = "inactive", failed: str = "inactive", jobs: tuple[str, ...] = ()
) -> str:
    """Return the output of ``systemctl show``; a unit without a job has no line for it."""
    states = {SMOKE_UNIT: smoke, PASSED: passed, FAILED: failed}
    blocks = [
        f"Id={unit}\nActiveState={state}\n" + ("Job=77\n" if unit in jobs else "") for unit, state in states.items()
    ]
    return "\n".join(blocks)
