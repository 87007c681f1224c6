"""Single decisions: the actions that must follow, and those that must not."""

from __future__ import annotations

import pytest

from appliance.upgrade.decide import decide
from appliance.upgrade.state import (
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
from tests.upgrade.model import HELD, NEW, OLD, on_trial


def test_a_new_generation_is_armed_and_the_old_one_stays() -> None:
    state, actions = decide(HELD, Installed(NEW, OLD), enforce=True)
    assert actions == (Keep(OLD), SetDefault(OLD), SetOneshot(NEW))
    assert state.trial == Trial(NEW, Phase.ARMED)


def test_a_passed_trial_boot_becomes_the_default() -> None:
    state, actions = decide(on_trial(Phase.BOOTED), SmokeVerdict(NEW, passed=True), enforce=True)
    assert actions == (Keep(NEW), SetDefault(NEW), ClearOneshot())
    assert (state.known_good, state.trial, state.held) == (NEW, None, SetDefault(NEW))


def test_a_failed_trial_boot_rolls_back_by_a_reboot() -> None:
    state, actions = decide(
        on_trial(Phase.BOOTED), SmokeVerdict(NEW, passed=False, reason="no token"), enforce=True
    )
    # Set again although it is held: the reboot must not depend on the firmware's memory.
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
def test_a_boot_of_the_known_good_generation_ends_a_trial_with_a_reason(phase: Phase) -> None:
    state, actions = decide(on_trial(phase), Booted(OLD), enforce=True, at="2026-11-25T20:00:00+00:00")
    assert actions == (SetDefault(OLD), ClearOneshot(), SetProfile(OLD))
    assert state.trial is None
    assert state.rolled_back[-1].generation == NEW
    assert "did not boot" in state.rolled_back[-1].reason or "stopped" in state.rolled_back[-1].reason


def test_a_rolled_back_generation_is_tried_again_only_on_request() -> None:
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
def test_the_known_good_generation_is_never_left(event: SmokeVerdict | Deadline | Booted) -> None:
    state, actions = decide(HELD, event, enforce=True)
    assert not any(isinstance(action, (Reboot, SwitchBack)) for action in actions)
    assert state.known_good == OLD


@pytest.mark.parametrize("booted", [Booted(OLD), Booted(OLD, rescue=True), Booted(NEW, rescue=True)])
def test_the_next_boot_completes_a_pass_that_a_power_cut_interrupted(booted: Booted) -> None:
    state, _ = decide(on_trial(Phase.BOOTED), SmokeVerdict(NEW, passed=True), enforce=True)
    state, actions = decide(state, booted, enforce=True)
    assert actions == (SetDefault(NEW),)
    assert state.known_good == NEW
    assert state.last.endswith("generation 8 is the known good generation and boots next")
    # The generation that runs meanwhile changes nothing, whatever its smoke test reports.
    for passed in (True, False):
        after, actions = decide(state, SmokeVerdict(OLD, passed=passed, reason="x"), enforce=True)
        assert (actions, after.known_good, after.held) == ((), NEW, SetDefault(NEW))


def test_a_boot_of_the_known_good_generation_changes_nothing() -> None:
    state, _ = decide(HELD, Booted(OLD), enforce=True)
    assert state == HELD


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("passed", [True, False])
def test_report_only_never_leaves_and_never_reboots(phase: Phase, passed: bool) -> None:
    for event in (SmokeVerdict(NEW, passed=passed), Deadline(NEW), Switched(NEW), Booted(NEW), Booted(OLD)):
        _, actions = decide(on_trial(phase), event, enforce=False)
        assert not any(isinstance(action, (Reboot, SwitchBack, SetOneshot)) for action in actions)


def test_the_deadline_applies_only_to_the_generation_that_booted() -> None:
    """A live switch shortly before the deadline, or a timer that the switch starts late, decides nothing."""
    for phase in (Phase.LIVE, Phase.LIVE_PASSED, Phase.ARMED):
        assert decide(on_trial(phase), Deadline(NEW), enforce=True) == (on_trial(phase), ())
    _, actions = decide(on_trial(Phase.BOOTED), Deadline(NEW), enforce=True)
    assert actions[-1] == Reboot(OLD)


def test_a_boot_that_could_not_be_saved_still_gets_its_verdict() -> None:
    """The state is still armed; the verdict itself reports that the generation booted."""
    _, actions = decide(on_trial(Phase.ARMED), SmokeVerdict(NEW, passed=False, reason="no token"), enforce=True)
    assert actions[-1] == Reboot(OLD)
    _, actions = decide(on_trial(Phase.ARMED), SmokeVerdict(NEW, passed=True), enforce=True)
    assert actions == (Keep(NEW), SetDefault(NEW), ClearOneshot())
    for passed in (True, False):
        state, actions = decide(on_trial(Phase.ARMED), SmokeVerdict(NEW, passed, booted=False), enforce=True)
        assert (actions, state.trial) == ((), Trial(NEW, Phase.ARMED)), "it has not booted yet"


def test_report_only_does_not_change_the_loader() -> None:
    for event in (Installed(NEW, OLD), Booted(NEW), Switched(NEW), SmokeVerdict(NEW, passed=False), Deadline(NEW)):
        assert decide(TrialState(known_good=OLD), event, enforce=False)[1] == ()


def test_report_only_takes_a_generation_as_known_good_only_after_a_boot() -> None:
    state, _ = decide(TrialState(known_good=OLD), SmokeVerdict(NEW, passed=True, booted=False), enforce=False)
    assert state.known_good == OLD
    state, _ = decide(TrialState(known_good=OLD), SmokeVerdict(NEW, passed=True), enforce=False)
    assert state.known_good == NEW


def test_enforcement_ends_only_after_a_verdict() -> None:
    state, actions = decide(HELD, Installed(NEW, OLD), enforce=False)
    assert SetOneshot(NEW) in actions
    state, actions = decide(state, Booted(NEW), enforce=False)
    assert actions == (SetDefault(OLD), ClearOneshot())
    state, actions = decide(state, SmokeVerdict(NEW, passed=False, reason="no token"), enforce=False)
    assert actions == (ReleaseDefault(NEW), ClearOneshot())
    assert state.held is None
