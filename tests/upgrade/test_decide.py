"""Single decisions, each with what must follow and what must not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from appliance.errors import LoaderError, StoreError
from appliance.upgrade.apply import apply
from appliance.upgrade.decide import decide
from appliance.upgrade.state import (
    Action,
    Booted,
    ClearOneshot,
    Deadline,
    Generation,
    Installed,
    Keep,
    Phase,
    Reboot,
    ReleaseDefault,
    RolledBack,
    SetDefault,
    SetOneshot,
    SetProfile,
    SmokeVerdict,
    SwitchBack,
    Switched,
    Trial,
    TrialState,
)
from appliance.upgrade.state_file import UNSENT, StateFile
from tests.smalldisk import SmallDisk

OLD, NEW = Generation("/nix/store/old", 7), Generation("/nix/store/new", 8)
HELD = TrialState(known_good=OLD, held=SetDefault(OLD))


def on_trial(phase: Phase) -> TrialState:
    return TrialState(known_good=OLD, held=SetDefault(OLD), trial=Trial(NEW, phase))


def test_a_new_generation_is_armed_and_the_old_one_stays() -> None:
    state, actions = decide(HELD, Installed(NEW, OLD), enforce=True)
    assert actions == (Keep(OLD), SetDefault(OLD), SetOneshot(NEW))
    assert state.trial == Trial(NEW, Phase.ARMED)


def test_a_passed_trial_boot_becomes_the_default() -> None:
    state, actions = decide(on_trial(Phase.BOOTED), SmokeVerdict(NEW, passed=True), enforce=True)
    assert actions == (Keep(NEW), SetDefault(NEW), ClearOneshot())
    assert (state.known_good, state.trial, state.held) == (NEW, None, SetDefault(NEW))


def test_a_failed_trial_boot_goes_back_by_a_reboot() -> None:
    state, actions = decide(
        on_trial(Phase.BOOTED), SmokeVerdict(NEW, passed=False, reason="no token"), enforce=True
    )
    # Set once more though it is held: the reboot must not hang on what a firmware remembers.
    assert actions == (SetDefault(OLD), ClearOneshot(), SetProfile(OLD), Reboot(OLD))
    assert state.failure_of(NEW) is not None
    assert "no token" in state.unsent[-1]


@pytest.mark.parametrize("phase", [Phase.LIVE, Phase.LIVE_PASSED])
def test_a_failure_after_a_live_switch_switches_back(phase: Phase) -> None:
    _, actions = decide(on_trial(phase), SmokeVerdict(NEW, passed=False, reason="no token"), enforce=True)
    assert actions[-1] == SwitchBack(OLD)
    assert Reboot(OLD) not in actions


def test_a_pass_after_a_live_switch_still_has_to_boot() -> None:
    state, actions = decide(on_trial(Phase.LIVE), SmokeVerdict(NEW, passed=True, booted=False), enforce=True)
    assert actions == ()
    assert (state.known_good, state.trial) == (OLD, Trial(NEW, Phase.LIVE_PASSED))
    state, _ = decide(state, Booted(NEW), enforce=True)
    state, actions = decide(state, SmokeVerdict(NEW, passed=True), enforce=True)
    assert SetDefault(NEW) in actions


@pytest.mark.parametrize("phase", list(Phase))
def test_coming_up_in_the_proven_one_ends_a_trial_and_says_why(phase: Phase) -> None:
    state, actions = decide(on_trial(phase), Booted(OLD), enforce=True, at="2026-11-25T20:00:00+00:00")
    assert actions == (SetDefault(OLD), ClearOneshot(), SetProfile(OLD))
    assert state.trial is None
    assert state.rolled_back[-1].generation == NEW
    assert "did not boot" in state.rolled_back[-1].reason or "stopped" in state.rolled_back[-1].reason


def test_what_was_rolled_back_is_tried_again_only_by_a_person() -> None:
    failure = RolledBack(NEW, "no token", "yesterday")
    failed = TrialState(known_good=OLD, held=SetDefault(OLD), rolled_back=(failure,))
    again_built = Generation(NEW.system, 9)
    state, actions = decide(failed, Installed(again_built, OLD), enforce=True)
    assert actions == (SetDefault(OLD), ClearOneshot())
    assert state.trial is None
    assert "no token" in state.last
    _, actions = decide(failed, Installed(again_built, OLD, again=True), enforce=True)
    assert SetOneshot(again_built) in actions


@pytest.mark.parametrize(
    "event", [SmokeVerdict(OLD, passed=False, reason="no network"), Deadline(OLD), Booted(OLD)]
)
def test_the_proven_one_is_never_left(event: SmokeVerdict | Deadline | Booted) -> None:
    state, actions = decide(HELD, event, enforce=True)
    assert not any(isinstance(action, (Reboot, SwitchBack)) for action in actions)
    assert state.known_good == OLD


@pytest.mark.parametrize("came", [Booted(OLD), Booted(OLD, rescue=True), Booted(NEW, rescue=True)])
def test_power_lost_between_the_record_of_a_pass_and_the_loader_is_made_good_and_said(came: Booted) -> None:
    state, _ = decide(on_trial(Phase.BOOTED), SmokeVerdict(NEW, passed=True), enforce=True)
    state, actions = decide(state, came, enforce=True)
    assert actions == (SetDefault(NEW),)
    assert state.known_good == NEW
    assert state.last.endswith("generation 8 is the known good generation and boots next")
    # What runs meanwhile takes nothing back, whatever its smoke test says.
    for passed in (True, False):
        after, actions = decide(state, SmokeVerdict(OLD, passed=passed, reason="x"), enforce=True)
        assert (actions, after.known_good, after.held) == ((), NEW, SetDefault(NEW))


def test_the_proven_one_at_home_is_no_news() -> None:
    state, _ = decide(HELD, Booted(OLD), enforce=True)
    assert state == HELD


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("passed", [True, False])
def test_report_only_never_leaves_and_never_reboots(phase: Phase, passed: bool) -> None:
    for event in (SmokeVerdict(NEW, passed=passed), Deadline(NEW), Switched(NEW), Booted(NEW), Booted(OLD)):
        _, actions = decide(on_trial(phase), event, enforce=False)
        assert not any(isinstance(action, (Reboot, SwitchBack, SetOneshot)) for action in actions)


def test_the_deadline_of_a_boot_judges_what_was_booted_alone() -> None:
    """A live switch shortly before it, or a timer that the switch itself starts late, proves nothing."""
    for phase in (Phase.LIVE, Phase.LIVE_PASSED, Phase.ARMED):
        assert decide(on_trial(phase), Deadline(NEW), enforce=True) == (on_trial(phase), ())
    _, actions = decide(on_trial(Phase.BOOTED), Deadline(NEW), enforce=True)
    assert actions[-1] == Reboot(OLD)


def test_an_arrival_that_could_not_be_recorded_is_judged_all_the_same() -> None:
    """The record still says armed; that it came up by a boot says the verdict itself."""
    _, actions = decide(on_trial(Phase.ARMED), SmokeVerdict(NEW, passed=False, reason="no token"), enforce=True)
    assert actions[-1] == Reboot(OLD)
    _, actions = decide(on_trial(Phase.ARMED), SmokeVerdict(NEW, passed=True), enforce=True)
    assert actions == (Keep(NEW), SetDefault(NEW), ClearOneshot())
    for passed in (True, False):
        state, actions = decide(on_trial(Phase.ARMED), SmokeVerdict(NEW, passed, booted=False), enforce=True)
        assert (actions, state.trial) == ((), Trial(NEW, Phase.ARMED)), "it was not booted yet"


def test_a_disk_that_was_full_all_the_time_keeps_nobody_in_a_failed_system(small_disk: SmallDisk) -> None:
    state_file, machine = StateFile(small_disk.folder / "trial"), Refusing()
    state_file.save(on_trial(Phase.ARMED))
    small_disk.fill()
    for event in (Booted(NEW), SmokeVerdict(NEW, passed=False, reason="no token")):
        with pytest.raises(StoreError, match="No space left"):
            apply(event, state_file=state_file, machine=machine, enforce=True)
    assert machine.done[-1] == Reboot(OLD)
    # The proven one comes up with the same full disk, and stays.
    machine.done.clear()
    for again in (Booted(OLD), SmokeVerdict(OLD, passed=False, reason="no token"), Deadline(OLD)):
        with suppress(StoreError):
            apply(again, state_file=state_file, machine=machine, enforce=True)
    assert not any(isinstance(action, (Reboot, SwitchBack)) for action in machine.done)


def test_report_only_touches_no_loader() -> None:
    for event in (Installed(NEW, OLD), Booted(NEW), Switched(NEW), SmokeVerdict(NEW, passed=False), Deadline(NEW)):
        assert decide(TrialState(known_good=OLD), event, enforce=False)[1] == ()


def test_report_only_learns_from_boots_alone() -> None:
    state, _ = decide(TrialState(known_good=OLD), SmokeVerdict(NEW, passed=True, booted=False), enforce=False)
    assert state.known_good == OLD
    state, _ = decide(TrialState(known_good=OLD), SmokeVerdict(NEW, passed=True), enforce=False)
    assert state.known_good == NEW


def test_enforcement_is_left_only_after_a_verdict() -> None:
    state, actions = decide(HELD, Installed(NEW, OLD), enforce=False)
    assert SetOneshot(NEW) in actions
    state, actions = decide(state, Booted(NEW), enforce=False)
    assert actions == (SetDefault(OLD), ClearOneshot())
    state, actions = decide(state, SmokeVerdict(NEW, passed=False, reason="no token"), enforce=False)
    assert actions == (ReleaseDefault(NEW), ClearOneshot())
    assert state.held is None


class Refusing:
    """Does everything but what it is told not to."""

    def __init__(self, *refused: type[Action]) -> None:
        self.refused, self.done = refused, list[Action]()

    def act(self, action: Action) -> None:
        if isinstance(action, self.refused):
            raise LoaderError("no")
        self.done.append(action)


def test_a_record_survives_and_a_failed_housekeeping_does_not_keep_it_here(tmp_path: Path) -> None:
    state_file, machine = StateFile(tmp_path), Refusing(SetProfile)
    state_file.save(on_trial(Phase.BOOTED))
    with pytest.raises(LoaderError):
        apply(SmokeVerdict(NEW, passed=False, reason="x"), state_file=state_file, machine=machine, enforce=True)
    assert machine.done[-1] == Reboot(OLD)
    assert state_file.load().failure_of(NEW) is not None


def test_nobody_reboots_towards_a_default_that_could_not_be_set(tmp_path: Path) -> None:
    state_file, machine = StateFile(tmp_path), Refusing(SetDefault)
    state_file.save(on_trial(Phase.BOOTED))
    with pytest.raises(LoaderError):
        apply(SmokeVerdict(NEW, passed=False, reason="x"), state_file=state_file, machine=machine, enforce=True)
    assert machine.done == []


@pytest.mark.parametrize("content", ["", "{", '{"proven": 7}', "\0" * 200])
def test_a_broken_record_is_put_aside_and_said(content: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(content)
    state = StateFile(tmp_path).load()
    assert (state.known_good, state.held) == (None, None)
    assert "damaged" in state.unsent[0]
    assert (tmp_path / "record.broken").read_text() == content
    assert StateFile(tmp_path).load() == state, "whoever looked first has taken the alert away"
    assert (tmp_path / UNSENT).exists(), "nobody would send it"


def test_a_broken_record_on_a_full_disk_is_said_each_time(small_disk: SmallDisk) -> None:
    state_file = StateFile(small_disk.folder / "trial")
    state_file.save(HELD)
    (state_file.folder / "record.json").write_text("{")
    small_disk.fill()
    for _ in range(2):
        assert "damaged" in state_file.load().unsent[0]
    small_disk.free()
    assert "is now record.broken" in state_file.load().unsent[0]


def test_a_record_that_cannot_be_written_names_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written \(File exists\); .*: move it away"):
        StateFile(tmp_path / "file").save(HELD)


def test_a_record_on_a_full_or_read_only_disk_stays_what_it_was(small_disk: SmallDisk) -> None:
    state_file = StateFile(small_disk.folder / "trial")
    state_file.save(HELD)
    small_disk.fill()
    with pytest.raises(StoreError, match=r"No space left on device.*free space on its disk"):
        state_file.save(on_trial(Phase.BOOTED))
    assert state_file.load() == HELD
    small_disk.read_only()
    with pytest.raises(StoreError, match=r"Read-only file system.*mount -o remount,rw"):
        state_file.save(on_trial(Phase.BOOTED))
    assert state_file.load() == HELD
