"""The login screen and the alert program."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import StartError
from appliance.upgrade.notify import send_alerts, write_motd
from appliance.upgrade.state import (
    TrialState,
)
from appliance.upgrade.state_file import UNSENT, StateFile


def test_the_login_screen_shows_decision_verdict_and_unsent_alerts(tmp_path: Path) -> None:
    motd = tmp_path / "motd.d" / "appliance"
    state = TrialState(last="generation 8 was rolled back: no token", unsent=("an older alert",))
    write_motd(state, "smoke test: FAIL", file=motd)
    assert motd.read_text().splitlines() == [
        "appliance: generation 8 was rolled back: no token",
        "appliance: smoke test: FAIL",
        "appliance: waiting to be sent: an older alert",
    ]
    assert list(motd.parent.iterdir()) == [motd], "a draft was left"


def hook(folder: Path, text: str) -> str:
    program = folder / "hook"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


def test_alerts_are_sent_oldest_first_and_removed(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    state_file.save(TrialState(unsent=("one", "two")))
    assert send_alerts(state_file, hook(tmp_path, f"cat >> {tmp_path}/got")) == 2
    assert (tmp_path / "got").read_text() == "one\ntwo\n"
    assert state_file.load().unsent == ()
    assert not (tmp_path / UNSENT).exists(), "the sender would start forever"


def test_an_alert_that_fails_is_kept(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    state_file.save(TrialState(unsent=("one", "two", "three")))
    takes_one = hook(tmp_path, f'read line; echo "$line" >> {tmp_path}/got; [ "$line" = one ]')
    with pytest.raises(StartError, match="ended with 1; it is retried later"):
        send_alerts(state_file, takes_one)
    assert state_file.load().unsent == ("two", "three")
    assert (tmp_path / UNSENT).exists(), "the sender would not start again"
    assert (tmp_path / "got").read_text() == "one\ntwo\n", "the third was sent before the second succeeded"
    with pytest.raises(StartError, match="cannot be run"):
        send_alerts(state_file, str(tmp_path / "absent"))


def test_a_mark_that_a_power_cut_left_is_removed(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    state_file.save(TrialState())
    (tmp_path / UNSENT).touch()
    assert send_alerts(state_file, hook(tmp_path, "exit 1")) == 0
    assert not (tmp_path / UNSENT).exists()
