"""Events applied to a machine on which saving, an action or a notification fails."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from appliance.errors import LoaderError, StoreError
from appliance.upgrade.apply import apply
from appliance.upgrade.state import (
    Action,
    Booted,
    Deadline,
    Phase,
    Reboot,
    SetDefault,
    SetProfile,
    SmokeVerdict,
    SwitchBack,
    Trial,
    TrialState,
)
from appliance.upgrade.state_file import StateFile
from tests.smalldisk import SmallDisk
from tests.upgrade.model import NEW, OLD, MemoryStateFile, ModelDisk, on_trial


class Refusing:
    """A machine on which chosen kinds of actions fail."""

    def __init__(self, *refused: type[Action]) -> None:
        self.refused, self.done = refused, list[Action]()

    def act(self, action: Action) -> None:
        if isinstance(action, self.refused):
            raise LoaderError("no")
        self.done.append(action)


def test_a_full_disk_does_not_keep_the_machine_in_a_failed_generation(small_disk: SmallDisk) -> None:
    state_file, machine = StateFile(small_disk.folder / "trial"), Refusing()
    state_file.save(on_trial(Phase.ARMED))
    small_disk.fill()
    for event in (Booted(NEW), SmokeVerdict(NEW, passed=False, reason="no token")):
        with pytest.raises(StoreError, match="No space left"):
            apply(event, state_file=state_file, machine=machine, enforce=True)
    assert machine.done[-1] == Reboot(OLD)
    # The known good generation boots with the same full disk, and stays.
    machine.done.clear()
    for again in (Booted(OLD), SmokeVerdict(OLD, passed=False, reason="no token"), Deadline(OLD)):
        with suppress(StoreError):
            apply(again, state_file=state_file, machine=machine, enforce=True)
    assert not any(isinstance(action, (Reboot, SwitchBack)) for action in machine.done)


def test_failed_housekeeping_does_not_prevent_the_roll_back(tmp_path: Path) -> None:
    state_file, machine = StateFile(tmp_path), Refusing(SetProfile)
    state_file.save(on_trial(Phase.BOOTED))
    with pytest.raises(LoaderError):
        apply(SmokeVerdict(NEW, passed=False, reason="x"), state_file=state_file, machine=machine, enforce=True)
    assert machine.done[-1] == Reboot(OLD)
    assert state_file.load().failure_of(NEW) is not None


def test_no_reboot_follows_a_default_that_could_not_be_set(tmp_path: Path) -> None:
    state_file, machine = StateFile(tmp_path), Refusing(SetDefault)
    state_file.save(on_trial(Phase.BOOTED))
    with pytest.raises(LoaderError):
        apply(SmokeVerdict(NEW, passed=False, reason="x"), state_file=state_file, machine=machine, enforce=True)
    assert machine.done == []


def test_a_login_screen_that_cannot_be_written_does_not_prevent_the_roll_back(tmp_path: Path) -> None:
    """Even if /run is full."""

    done: list[object] = []

    class FailingTarget:
        def act(self, action: object) -> None:
            done.append(action)

    def notify(_: TrialState) -> None:
        raise StoreError("/run/motd.d/appliance cannot be written")

    live = TrialState(known_good=OLD, held=SetDefault(OLD), trial=Trial(NEW, Phase.LIVE))
    with pytest.raises(StoreError, match="motd"):
        apply(
            SmokeVerdict(NEW, passed=False, reason="slow", booted=False),
            state_file=MemoryStateFile(disk=ModelDisk(live)),
            machine=FailingTarget(),
            enforce=True,
            notify=notify,
        )
    assert done[-1] == SwitchBack(OLD)
