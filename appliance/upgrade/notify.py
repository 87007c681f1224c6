"""Tells people what became of a trial: at login, on the console, by the owner's alert program."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import StartError, StoreError
from appliance.upgrade.state import TrialState
from appliance.upgrade.state_file import Record, replace_file

MOTD = Path("/run/motd.d/appliance")
HOOK_TIMEOUT_S = 60.0
"""An alert program that hangs must not keep the next alert from being tried."""


@dataclass(frozen=True, slots=True)
class Announcer:
    """Where people look; the file is a parameter so that a test can own it."""

    motd: Path = MOTD

    def login(self, state: TrialState, verdict: str = "") -> None:
        """Write what a person reads at login: the last decision, and the smoke test's own line.

        Raises :class:`StoreError` where the file cannot be written.
        """
        lines = [line for line in (state.last, verdict) if line]
        lines += [f"waiting to be sent: {line}" for line in state.unsent if line != state.last]
        text = "".join(f"appliance: {line}\n" for line in lines)
        try:
            self.motd.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.motd, self.motd.with_name(f".{self.motd.name}.new"), text.encode())
        except OSError as error:
            raise StoreError.unwritable(self.motd, error) from None


def send_alerts(record: Record, hook: str) -> int:
    """Give every alert that waits to the program ``hook`` on its standard input, oldest first; how many it took.

    Raises :class:`StartError` at the first that it does not take: that one and the later ones stay for the next
    try, for a machine that has just come back may have no network yet.
    """
    waiting = record.load().unsent
    for line in waiting:
        try:
            done = subprocess.run([hook], input=line + "\n", text=True, check=False, timeout=HOOK_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise StartError(f"the alert program {hook} did not end within {HOOK_TIMEOUT_S:.0f} s") from None
        except OSError as error:
            raise StartError(f"the alert program {hook} cannot be run ({error.strerror})") from None
        if done.returncode:
            raise StartError(f"the alert program {hook} ended with {done.returncode}; it is tried again later")
        record.sent(line)
    record.settle()
    return len(waiting)
