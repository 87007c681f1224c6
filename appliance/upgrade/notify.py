"""Notifies people of the result of a trial: at login, on the console, by the outbox or the site's alert program."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from appliance.errors import StartError, StoreError
from appliance.notices.notice import Notice
from appliance.notices.outbox import Outbox
from appliance.upgrade.state import TrialState
from appliance.upgrade.state_file import StateFile, replace_file

MOTD = Path("/run/motd.d/appliance")
HOOK_TIMEOUT_S = 60.0
"""Limit of one call of the alert program, so that a program which hangs does not prevent the next attempt."""


def write_motd(state: TrialState, verdict: str = "", *, file: Path = MOTD) -> None:
    """Write the text of the login screen: the last decision, the ``verdict`` of the smoke test, unsent alerts.

    Raises :class:`StoreError` if ``file`` cannot be written.
    """
    lines = [line for line in (state.last, verdict) if line]
    lines += [f"waiting to be sent: {line}" for line in state.unsent if line != state.last]
    text = "".join(f"appliance: {line}\n" for line in lines)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, file.with_name(f".{file.name}.new"), text.encode())
    except OSError as error:
        raise StoreError.unwritable(file, error) from None


def send_alerts(state_file: StateFile, hook: str) -> int:
    """Send each unsent alert to the standard input of the program ``hook``, oldest first; return their number.

    Raises :class:`StartError` at the first alert that fails. That alert and the later ones stay for the next
    attempt, because a machine that has just booted may have no network yet.
    """
    waiting = state_file.load().unsent
    for line in waiting:
        try:
            done = subprocess.run([hook], input=line + "\n", text=True, check=False, timeout=HOOK_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise StartError(f"the alert program {hook} did not end within {HOOK_TIMEOUT_S:.0f} s") from None
        except OSError as error:
            raise StartError(f"the alert program {hook} cannot be run ({error.strerror})") from None
        if done.returncode:
            raise StartError(f"the alert program {hook} ended with {done.returncode}; it is retried later")
        state_file.remove_alert(line)
    state_file.remove_stale_mark()
    return len(waiting)


def put_alerts(state_file: StateFile, outbox: Outbox) -> int:
    """Put each unsent alert into ``outbox``, oldest first; return their number.

    A power cut between that and the update of the state file leads to a repetition with the same tag, which is sent
    once. Raises :class:`StoreError` if a file cannot be written; the alert stays for the next attempt.
    """
    count = 0
    while (found := state_file.next_alert()) is not None:
        line, tag = found
        outbox.put(Notice(kind="trial", subject="", text=line, at=time.time()), tag=tag)
        state_file.remove_alert(line)
        count += 1
    state_file.remove_stale_mark()
    return count
