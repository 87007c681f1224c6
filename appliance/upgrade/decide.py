"""What follows from what happened. Pure: a state and an event go in, a state and actions come out.

The rules that every branch below serves:

- The entry that boots by itself is the proven one. A candidate boots through the one-shot entry, which the
  loader deletes before it starts anything; so a hang, a panic or a power cut needs no decision to go back.
- The new state is written before any action is taken, and each action may be the last before a power cut.
- A reboot of ours follows only the verdict on a candidate's trial, and ends that trial. The proven generation
  is never left and never rebooted, whatever its smoke test says: there is nothing better to go to.
- What failed is not tried again unless a person says so.
"""

from __future__ import annotations

from dataclasses import replace

from appliance.upgrade.state import (
    KEPT,
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
    Phase.ARMED: "it did not come up: a hang or panic early in its boot, or a power cut",
    Phase.BOOTED: "it came up and went down before its smoke test ended: a hang, a panic, a reboot or a power cut",
    Phase.LIVE: "it was switched to and the machine went down: its boot did not come up",
    Phase.LIVE_PASSED: "it passed after a live switch, but did not come up by a boot of its own",
}


def decide(state: TrialState, event: Event, *, enforce: bool, at: str = "") -> Decision:
    """The state after ``event`` and what to do, in order; ``at`` is the time as the record shall show it.

    Without ``enforce`` nothing is done to the loader or the machine beyond taking back what an enforcing
    generation had set: what would have been done is said instead.
    """
    if isinstance(event, Booted):
        # In either mode: what an enforcing generation began is brought to its end.
        return _booted(state, event, at)
    return _enforced(state, event, at) if enforce else _reported(state, event)


def _enforced(state: TrialState, event: Installed | Switched | SmokeVerdict | Deadline, at: str) -> Decision:
    if isinstance(event, Installed):
        return _installed(state, event)
    if isinstance(event, Switched):
        return _switched(state, event.generation)
    if isinstance(event, SmokeVerdict):
        return _passed(state, event) if event.passed else _failed(state, event, at)
    # It counts from the boot: what was switched to since had less time, or none, and the test has its own limit.
    if _on_trial(state, event.generation, Phase.BOOTED):
        return _failed(state, SmokeVerdict(event.generation, passed=False, reason="no verdict in time"), at)
    return state, ()


def _installed(state: TrialState, event: Installed) -> Decision:
    new, proven = event.generation, state.proven or event.booted
    if proven is None and not event.rescue:
        # The first system of a machine without a rescue entry: there is nothing to hold on to.
        return replace(state, trial=None, last=f"{new.label} is the first here; nothing to go back to"), ()
    if proven is not None and new.same(proven):
        hold = SetDefault(new)
        state = replace(state, proven=new, trial=None, held=hold, last=f"{new.label} is the proven system")
        return state, (hold, ClearOneshot())
    hold = SetDefault(new, rescue=True) if proven is None else SetDefault(proven)
    stays = "the rescue system" if proven is None else proven.label
    state = replace(state, proven=proven, held=hold)
    failure = state.why_not(new)
    if failure and not event.again:
        line = (
            f"{new.label} was rolled back on {failure.at or 'an earlier day'} ({failure.reason}) and is not tried "
            f"again by itself; {stays} stays. `appliance upgrade --again` tries it once more"
        )
        return replace(state, trial=None, last=line), (hold, ClearOneshot())
    rolled_back = tuple(one for one in state.rolled_back if not new.same(one.generation))
    line = f"{new.label} is tried at the next boot; {stays} stays the default until it has passed"
    state = replace(state, trial=Trial(new, Phase.ARMED), rolled_back=rolled_back, last=line)
    if proven is None:
        # In this order: a rescue system is better than a hang, and worse than the system itself.
        return state, (SetOneshot(new), hold)
    return state, (Keep(proven), hold, SetOneshot(new))


def _booted(state: TrialState, event: Booted, at: str) -> Decision:
    trial, here = state.trial, event.generation
    # Set anew at each boot: the firmware may have lost its variables, or the power went before they were set.
    hold: tuple[Action, ...] = (state.held,) if state.held is not None else ()
    if trial is None:
        elsewhere = event.rescue or not here.same(state.proven)
        if elsewhere and state.proven is not None and state.held == SetDefault(state.proven):
            # Chosen by hand, or the power went between the record of a pass and the loader's new default.
            runs = f"the rescue system of {here.label}" if event.rescue else here.label
            state = replace(state, last=f"{runs} runs; {state.proven.label} is the proven system and boots next")
        return state, hold
    if here.same(trial.candidate) and not event.rescue:
        state = replace(state, trial=Trial(here, Phase.BOOTED), last=f"{here.label} is on trial")
        return state, (*hold, ClearOneshot())
    came = "its rescue system" if event.rescue else here.label
    state = _remember(state, trial.candidate, _VANISHED[trial.phase], at, then=f"{came} runs")
    back = (SetProfile(state.proven),) if state.proven is not None else ()
    return state, (*hold, ClearOneshot(), *back)


def _switched(state: TrialState, here: Generation) -> Decision:
    if here.same(state.proven):
        return state, ()
    known = _on_trial(state, here, *Phase)
    if known is None and state.trial is not None:
        # Something else was activated for a look; the trial that waits for a boot keeps waiting.
        return replace(state, last=f"{here.label} runs unproven; {state.trial.candidate.label} is tried next"), ()
    armed = known is not None and known.armed
    line = f"{here.label} was switched to and is on trial"
    return replace(state, trial=Trial(here, Phase.LIVE, armed=armed), last=line), ()


def _passed(state: TrialState, event: SmokeVerdict) -> Decision:
    here = event.generation
    if here.same(state.proven) or (state.proven is None and state.trial is None and event.booted):
        hold = SetDefault(here)
        state = replace(state, proven=here, held=hold, last=f"{here.label} passed its smoke test")
        return state, (Keep(here), hold)
    trial = _under_test(state, event)
    if trial is None or trial.phase is Phase.LIVE_PASSED:
        return state, ()
    if trial.phase is Phase.LIVE:
        if not trial.armed:
            line = f"{here.label} passed, but is not installed to boot; a reboot leaves it"
            return replace(state, trial=None, last=line), ()
        line = f"{here.label} passed after a live switch; it becomes the default once it has passed after a boot"
        return replace(state, trial=Trial(here, Phase.LIVE_PASSED), last=line), ()
    hold = SetDefault(here)
    state = replace(state, proven=here, trial=None, held=hold, last=f"{here.label} passed: the new default")
    return state, (Keep(here), hold, ClearOneshot())


def _failed(state: TrialState, event: SmokeVerdict, at: str) -> Decision:
    here, reason = event.generation, event.reason
    trial, proven = _under_test(state, event), state.proven
    if proven is None:
        # It came up, which a rescue system would do too, but nothing more: stay, and boot here again.
        line = f"{here.label} failed its smoke test ({reason}); nothing was ever proven here, so it stays"
        if state.held is None or not event.booted:
            return _alert(replace(state, trial=None), line), ()
        hold = SetDefault(here)
        return _alert(replace(state, trial=None, held=hold), line), (hold, ClearOneshot())
    if trial is None:
        kind = "the proven one" if here.same(proven) else "not on trial"
        return _alert(state, f"{here.label} failed its smoke test ({reason}); it is {kind}, so it stays"), ()
    hold = SetDefault(proven)
    state = replace(_remember(state, here, reason, at, then=f"back to {proven.label}"), held=hold)
    actions: tuple[Action, ...] = (hold, ClearOneshot(), SetProfile(proven))
    return state, (*actions, Reboot(proven) if trial.phase is Phase.BOOTED else SwitchBack(proven))


def _reported(state: TrialState, event: Installed | Switched | SmokeVerdict | Deadline) -> Decision:
    """Report only. What an enforcing generation set is taken back by the verdict on the first boot, not before."""
    if isinstance(event, Installed) and state.held is not None:
        # The way out of enforcement is a candidate like any other: it might not boot.
        return _installed(state, event)
    if not isinstance(event, SmokeVerdict):
        return state, ()
    here = event.generation
    if event.passed:
        state = replace(state, last=f"{here.label} passed its smoke test (report only)")
    else:
        would = "nothing better is known"
        if state.proven is not None and not here.same(state.proven):
            would = f"enforced, the machine would have gone back to {state.proven.label}"
        state = _alert(state, f"{here.label} failed its smoke test ({event.reason}); report only: {would}")
    if state.held is None:
        # That it ran says nothing of its boot.
        return (replace(state, proven=here) if event.passed and event.booted else state), ()
    if (here.same(state.proven) and state.trial is None) or _on_trial(state, here, Phase.BOOTED):
        proven = here if event.passed else state.proven
        state = replace(state, proven=proven, trial=None, held=None)
        return state, (ReleaseDefault(here), ClearOneshot())
    return state, ()


def _on_trial(state: TrialState, here: Generation, *phases: Phase) -> Trial | None:
    trial = state.trial
    return trial if trial is not None and here.same(trial.candidate) and trial.phase in phases else None


def _under_test(state: TrialState, event: SmokeVerdict) -> Trial | None:
    """The trial that a verdict is about; one still armed, though booted, could not be recorded as it arrived."""
    if event.booted and (armed := _on_trial(state, event.generation, Phase.ARMED)):
        return replace(armed, phase=Phase.BOOTED)
    return _on_trial(state, event.generation, Phase.BOOTED, Phase.LIVE, Phase.LIVE_PASSED)


def _remember(state: TrialState, failed: Generation, reason: str, at: str, *, then: str) -> TrialState:
    kept = tuple(one for one in state.rolled_back if not failed.same(one.generation))
    rolled_back = (*kept, RolledBack(failed, reason, at))[-KEPT:]
    line = f"{failed.label} was rolled back: {reason}; {then}"
    return _alert(replace(state, trial=None, rolled_back=rolled_back), line)


def _alert(state: TrialState, line: str) -> TrialState:
    return replace(state, last=line, unsent=(*state.unsent, line)[-KEPT:])
