"""Applies an event: decides, saves the state, carries out the actions; safe against a power cut at any point."""

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
from appliance.upgrade.state_file import StateFile


def now() -> str:
    """Return the local time in the format of the state file, ISO 8601 with seconds."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def apply(
    event: Event,
    *,
    state_file: StateFile,
    machine: ActionTarget,
    enforce: bool,
    notify: Callable[[TrialState], object] = lambda _: None,
) -> TrialState:
    """Carry out all that follows from ``event``, a reboot or a switch last, and return the new state.

    ``notify`` receives the new state before a reboot or a switch may end this process.

    Raises :class:`StoreError` or :class:`LoaderError` if something failed. An entry that the loader does not accept
    raises at once, because a reboot would lead to a default that could not be set. Housekeeping raises at the end.
    """
    with state_file.locked():
        before = state_file.load()
        state, actions = decide(before, event, enforce=enforce, at=now())
        failure: LoaderError | StoreError | None = None
        try:
            if state != before:
                state_file.save(state)
        except StoreError as error:
            failure, actions = error, tuple(action for action in actions if _allowed_unsaved(action, before))
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
        notify(state)
    except StoreError as error:
        # A failed notification must not keep the machine in a generation that failed.
        failure = failure or error
    # Outside the lock: the switch installs the boot loader, whose hook calls this function again.
    for action in actions:
        if isinstance(action, (Reboot, SwitchBack)):
            print(f"{state.last}: {'rebooting' if isinstance(action, Reboot) else 'switching back'}", flush=True)
            machine.act(action)
    if failure is not None:
        raise failure
    return state


def _allowed_unsaved(action: Action, before: TrialState) -> bool:
    """Return whether ``action`` is correct although the state could not be saved, for example on a full disk.

    It is if it keeps or restores the known good generation of the saved state. So a full disk prevents arming and
    accepting a candidate, but not leaving it.
    """
    if isinstance(action, SetDefault):
        return action == before.held
    return isinstance(action, (ClearOneshot, Reboot, SwitchBack))
