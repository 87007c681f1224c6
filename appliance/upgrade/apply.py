"""Takes an event through the record, the decision and the machine, in the order that a power cut cannot hurt."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from appliance.errors import LoaderError, StoreError
from appliance.upgrade.decide import decide
from appliance.upgrade.nixos import ActionTarget
from appliance.upgrade.state import (
    Action,
    ClearOneshot,
    Event,
    Reboot,
    SetDefault,
    SetOneshot,
    SwitchBack,
    TrialState,
)
from appliance.upgrade.state_file import Record


def now() -> str:
    """The time as the record shows it."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def drive(
    event: Event,
    *,
    record: Record,
    machine: ActionTarget,
    enforce: bool,
    announce: Callable[[TrialState], object] = lambda _: None,
) -> TrialState:
    """The state after ``event``; all that follows from it is done, a reboot or a switch last.

    ``announce`` is told the new state before a reboot or a switch may end this process.

    Raises :class:`StoreError` or :class:`LoaderError` where something could not be done: at once where the
    loader would not take an entry, for nobody shall reboot towards a default that could not be set; at the end
    where it was housekeeping.
    """
    with record.locked():
        before = record.load()
        state, actions = decide(before, event, enforce=enforce, at=now())
        failure: LoaderError | StoreError | None = None
        try:
            if state != before:
                record.save(state)
        except StoreError as error:
            failure, actions = error, tuple(action for action in actions if _needs_no_record(action, before))
        for action in actions:
            if isinstance(action, (Reboot, SwitchBack)):
                continue
            try:
                machine.act(action)
            except LoaderError as error:
                if isinstance(action, (SetDefault, SetOneshot)):
                    raise
                failure = failure or error
    try:
        announce(state)
    except StoreError as error:
        # That nobody can be told is no reason to stay in what failed.
        failure = failure or error
    # Outside the lock: the switch installs the boot loader, which tells us so.
    for action in actions:
        if isinstance(action, (Reboot, SwitchBack)):
            print(f"{state.last}: {'rebooting' if isinstance(action, Reboot) else 'switching back'}", flush=True)
            machine.act(action)
    if failure is not None:
        raise failure
    return state


def _needs_no_record(action: Action, before: TrialState) -> bool:
    """Whether ``action`` is right though the disk is full: it holds or goes to what was proven before.

    So a full disk keeps a candidate from being armed or blessed, and not from being left.
    """
    if isinstance(action, SetDefault):
        return action == before.held
    return isinstance(action, (ClearOneshot, Reboot, SwitchBack))
