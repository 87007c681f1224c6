"""Decides what follows from an event. Pure: a state and an event are the input, a state and actions the result.

The rules that every branch below serves:

- The default entry is the known good generation. A candidate boots through the one-shot entry, which the loader
  deletes before it starts anything. So a hang, a panic or a power cut needs no decision to roll back.
- The new state is written before any action, and each action may be the last before a power cut.
- The program reboots only after the verdict on a candidate's trial, and the verdict ends that trial. It never
  leaves and never reboots the known good generation, whatever its smoke test reports: there is no better one.
- A failed generation is not tried again unless the operator requests it.
"""

from __future__ import annotations

from msgspec.structs import replace

from appliance.upgrade.state import (
    HISTORY_LIMIT,
    Action,
    Booted,
    ClearOneshot,
    Deadline,
    Event,
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

Decision = tuple[TrialState, tuple[Action, ...]]

_VANISHED = {
    Phase.ARMED: "it did not boot: a hang or panic early in the boot, or a power cut",
    Phase.BOOTED: "it booted and stopped before its smoke test ended: a hang, a panic, a reboot or a power cut",
    Phase.LIVE: "it was switched to and the machine stopped; after that it did not boot",
    Phase.LIVE_PASSED: "it passed after a live switch, but did not boot",
}


def decide(state: TrialState, event: Event, *, enforce: bool, at: str = "") -> Decision:
    """Return the state after ``event`` and the actions in order; ``at`` is the time that the state records.

    Without ``enforce`` the actions only revert what an enforcing generation had set, and the state reports what
    would have been done.
    """
    if isinstance(event, Booted):
        # In both modes, to complete what an enforcing generation began.
        return _booted(state, event, at)
    return _enforced(state, event, at) if enforce else _reported(state, event)


def _enforced(state: TrialState, event: Installed | Switched | SmokeVerdict | Deadline, at: str) -> Decision:
    if isinstance(event, Installed):
        return _installed(state, event)
    if isinstance(event, Switched):
        return _switched(state, event.generation)
    if isinstance(event, SmokeVerdict):
        return _passed(state, event) if event.passed else _failed(state, event, at)
    # The deadline counts from the boot: a later live switch had less time, and the smoke test has its own limit.
    if _on_trial(state, event.generation, Phase.BOOTED):
        return _failed(state, SmokeVerdict(event.generation, passed=False, reason="no verdict in time"), at)
    return state, ()


def _installed(state: TrialState, event: Installed) -> Decision:
    new, known_good = event.generation, state.known_good or event.booted
    if known_good is None and not event.rescue:
        # The first system of a machine without a rescue entry has no fallback.
        return replace(
            state, trial=None, last=f"{new.label} is the first here; there is no generation to roll back to"
        ), ()
    if known_good is not None and new.same(known_good):
        hold = SetDefault(new)
        state = replace(
            state, known_good=new, trial=None, held=hold, last=f"{new.label} is the known good generation"
        )
        return state, (hold, ClearOneshot())
    hold = SetDefault(new, rescue=True) if known_good is None else SetDefault(known_good)
    stays = "the rescue system" if known_good is None else known_good.label
    state = replace(state, known_good=known_good, held=hold)
    failure = state.failure_of(new)
    if failure and not event.again:
        line = (
            f"{new.label} was rolled back on {failure.at or 'an earlier day'} ({failure.reason}) and is not tried "
            f"again automatically; {stays} stays the default. `appliance upgrade --again` tries it once more"
        )
        return replace(state, trial=None, last=line), (hold, ClearOneshot())
    rolled_back = tuple(one for one in state.rolled_back if not new.same(one.generation))
    line = f"{new.label} is tried at the next boot; {stays} stays the default until it passes"
    state = replace(state, trial=Trial(new, Phase.ARMED), rolled_back=rolled_back, last=line)
    if known_good is None:
        # In this order: a rescue system is better than a hang, and worse than the system itself.
        return state, (SetOneshot(new), hold)
    return state, (Keep(known_good), hold, SetOneshot(new))


def _booted(state: TrialState, event: Booted, at: str) -> Decision:
    trial, here = state.trial, event.generation
    # Set again at each boot: the firmware may have lost its variables, or the power failed before they were set.
    hold: tuple[Action, ...] = (state.held,) if state.held is not None else ()
    if trial is None:
        elsewhere = event.rescue or not here.same(state.known_good)
        if elsewhere and state.known_good is not None and state.held == SetDefault(state.known_good):
            # Chosen in the loader's menu, or the power failed between saving a pass and setting the new default.
            runs = f"the rescue system of {here.label}" if event.rescue else here.label
            state = replace(
                state, last=f"{runs} runs; {state.known_good.label} is the known good generation and boots next"
            )
        return state, hold
    if here.same(trial.candidate) and not event.rescue:
        state = replace(state, trial=Trial(here, Phase.BOOTED), last=f"{here.label} is on trial")
        return state, (*hold, ClearOneshot())
    booted = "its rescue system" if event.rescue else here.label
    state = _rolled_back(state, trial.candidate, _VANISHED[trial.phase], at, then=f"{booted} runs")
    back = (SetProfile(state.known_good),) if state.known_good is not None else ()
    return state, (*hold, ClearOneshot(), *back)


def _switched(state: TrialState, here: Generation) -> Decision:
    if here.same(state.known_good):
        return state, ()
    known = _on_trial(state, here, *Phase)
    if known is None and state.trial is not None:
        # Another generation was activated; the trial that waits for a boot stays pending.
        return replace(
            state, last=f"{here.label} runs without a trial; {state.trial.candidate.label} is tried next"
        ), ()
    armed = known is not None and known.armed
    line = f"{here.label} was switched to and is on trial"
    return replace(state, trial=Trial(here, Phase.LIVE, armed=armed), last=line), ()


def _passed(state: TrialState, event: SmokeVerdict) -> Decision:
    here = event.generation
    if here.same(state.known_good) or (state.known_good is None and state.trial is None and event.booted):
        hold = SetDefault(here)
        state = replace(state, known_good=here, held=hold, last=f"{here.label} passed its smoke test")
        return state, (Keep(here), hold)
    trial = _under_test(state, event)
    if trial is None or trial.phase is Phase.LIVE_PASSED:
        return state, ()
    if trial.phase is Phase.LIVE:
        if not trial.armed:
            line = f"{here.label} passed, but is not installed to boot; a reboot ends it"
            return replace(state, trial=None, last=line), ()
        line = f"{here.label} passed after a live switch; it becomes the default after it has passed after a boot"
        return replace(state, trial=Trial(here, Phase.LIVE_PASSED), last=line), ()
    hold = SetDefault(here)
    state = replace(state, known_good=here, trial=None, held=hold, last=f"{here.label} passed: the new default")
    return state, (Keep(here), hold, ClearOneshot())


def _failed(state: TrialState, event: SmokeVerdict, at: str) -> Decision:
    here, reason = event.generation, event.reason
    trial, known_good = _under_test(state, event), state.known_good
    if known_good is None:
        # It booted. A rescue system would not do more, so stay, and boot this generation again.
        line = f"{here.label} failed its smoke test ({reason}); no generation is known good here, so it stays"
        if state.held is None or not event.booted:
            return _with_alert(replace(state, trial=None), line), ()
        hold = SetDefault(here)
        return _with_alert(replace(state, trial=None, held=hold), line), (hold, ClearOneshot())
    if trial is None:
        kind = "the known good one" if here.same(known_good) else "not on trial"
        return _with_alert(state, f"{here.label} failed its smoke test ({reason}); it is {kind}, so it stays"), ()
    hold = SetDefault(known_good)
    state = replace(_rolled_back(state, here, reason, at, then=f"back to {known_good.label}"), held=hold)
    actions: tuple[Action, ...] = (hold, ClearOneshot(), SetProfile(known_good))
    return state, (*actions, Reboot(known_good) if trial.phase is Phase.BOOTED else SwitchBack(known_good))


def _reported(state: TrialState, event: Installed | Switched | SmokeVerdict | Deadline) -> Decision:
    """Decide in the mode that only reports.

    The verdict on the first boot reverts what an enforcing generation set, not an earlier event.
    """
    if isinstance(event, Installed) and state.held is not None:
        # The generation that ends enforcement is a candidate like any other: it might not boot.
        return _installed(state, event)
    if not isinstance(event, SmokeVerdict):
        return state, ()
    here = event.generation
    if event.passed:
        state = replace(state, last=f"{here.label} passed its smoke test (report only)")
    else:
        would = "there is no other known good generation"
        if state.known_good is not None and not here.same(state.known_good):
            would = f"with enforcement the machine would have rolled back to {state.known_good.label}"
        state = _with_alert(state, f"{here.label} failed its smoke test ({event.reason}); report only: {would}")
    if state.held is None:
        # A pass after a live switch does not prove that the generation boots.
        return (replace(state, known_good=here) if event.passed and event.booted else state), ()
    if (here.same(state.known_good) and state.trial is None) or _on_trial(state, here, Phase.BOOTED):
        known_good = here if event.passed else state.known_good
        state = replace(state, known_good=known_good, trial=None, held=None)
        return state, (ReleaseDefault(here), ClearOneshot())
    return state, ()


def _on_trial(state: TrialState, here: Generation, *phases: Phase) -> Trial | None:
    trial = state.trial
    return trial if trial is not None and here.same(trial.candidate) and trial.phase in phases else None


def _under_test(state: TrialState, event: SmokeVerdict) -> Trial | None:
    """Return the trial that a verdict is about; it is still armed after a boot if the boot could not be saved."""
    if event.booted and (armed := _on_trial(state, event.generation, Phase.ARMED)):
        return Trial(armed.candidate, Phase.BOOTED, armed=armed.armed)
    return _on_trial(state, event.generation, Phase.BOOTED, Phase.LIVE, Phase.LIVE_PASSED)


def _rolled_back(state: TrialState, failed: Generation, reason: str, at: str, *, then: str) -> TrialState:
    kept = tuple(one for one in state.rolled_back if not failed.same(one.generation))
    rolled_back = (*kept, RolledBack(failed, reason, at))[-HISTORY_LIMIT:]
    line = f"{failed.label} was rolled back: {reason}; {then}"
    return _with_alert(replace(state, trial=None, rolled_back=rolled_back), line)


def _with_alert(state: TrialState, line: str) -> TrialState:
    return replace(state, last=line, unsent=(*state.unsent, line)[-HISTORY_LIMIT:])
