"""Takes an event through the record, the decision and the machine, in the order that a power cut cannot hurt."""

from __future__ import annotations

from datetime import datetime

from appliance.errors import LoaderError, StoreError
from appliance.trial.decide import decide
from appliance.trial.machine import Machine
from appliance.trial.record import Record
from appliance.trial.state import Action, Event, Reboot, SetDefault, SetOneshot, State, SwitchBack


def now() -> str:
    """The time as the record shows it."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def drive(event: Event, *, record: Record, machine: Machine, enforce: bool) -> State:
    """The state after ``event``; all that follows from it is done, a reboot or a switch last.

    Raises :class:`StoreError` or :class:`LoaderError` where something could not be done: at once where the
    loader would not take an entry, for nobody shall reboot towards a default that could not be set; at the end
    where it was housekeeping.
    """
    with record.locked():
        before = record.load()
        state, actions = decide(before, event, enforce=enforce, at=now())
        failure: LoaderError | StoreError | None = _save(record, before, state, actions)
        for action in actions:
            if isinstance(action, (Reboot, SwitchBack)):
                continue
            try:
                machine.act(action)
            except LoaderError as error:
                if isinstance(action, (SetDefault, SetOneshot)):
                    raise
                failure = error
    # Outside the lock: the switch installs the boot loader, which tells us so.
    for action in actions:
        if isinstance(action, (Reboot, SwitchBack)):
            print(f"{state.last}: {'rebooting' if isinstance(action, Reboot) else 'switching back'}", flush=True)
            machine.act(action)
    if failure is not None:
        raise failure
    return state


def _save(record: Record, before: State, state: State, actions: tuple[Action, ...]) -> StoreError | None:
    """Write the record first. A full disk keeps a candidate from being armed or blessed, not from going back."""
    if state == before:
        return None
    try:
        record.save(state)
    except StoreError as error:
        if any(isinstance(action, (Reboot, SwitchBack)) for action in actions):
            return error
        raise
    return None
