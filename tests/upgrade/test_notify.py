"""The login screen and the alert program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.errors import StartError, StoreError
from appliance.notices.outbox import Outbox, tag_of
from appliance.upgrade.notify import put_alerts, send_alerts, write_motd
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


def texts(outbox: Outbox) -> list[str]:
    return [json.loads(file.read_text())["text"] for file in outbox.waiting()]


def test_alerts_are_put_into_the_outbox_oldest_first_and_removed(tmp_path: Path) -> None:
    state_file, outbox = StateFile(tmp_path / "trial"), Outbox(tmp_path / "outbox")
    state_file.save(TrialState(unsent=("one", "two", "one")))
    assert put_alerts(state_file, outbox) == 3
    assert texts(outbox) == ["one", "two", "one"]
    assert len({tag_of(file.name) for file in outbox.waiting()}) == 3, "a repeated line counts as one alert"
    assert state_file.load() == TrialState()
    assert not (tmp_path / "trial" / UNSENT).exists()
    assert json.loads(outbox.waiting()[0].read_text())["kind"] == "trial"


def test_a_power_cut_after_the_put_leads_to_the_same_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender sends each tag once (tests/watch/test_courier.py)."""
    state_file, outbox = StateFile(tmp_path / "trial"), Outbox(tmp_path / "outbox")
    state_file.save(TrialState(unsent=("one", "one", "two")))

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "remove_alert", cut)
        with pytest.raises(KeyboardInterrupt):
            put_alerts(state_file, outbox)
    assert put_alerts(state_file, outbox) == 3
    assert texts(outbox) == ["one", "one", "one", "two"]
    tags = [tag_of(file.name) for file in outbox.waiting()]
    assert tags[0] == tags[1]
    assert len(set(tags)) == 3


def test_a_tag_of_an_alert_that_no_longer_waits_is_not_used_for_another_one(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    state_file.save(TrialState(unsent=("new",), handover=("old", "trial_0")))
    found = state_file.next_alert()
    assert found is not None
    assert found[0] == "new"
    assert found[1] != "trial_0"
    assert state_file.next_alert() == found


def test_an_outbox_that_cannot_be_written_keeps_the_alerts(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path / "trial")
    state_file.save(TrialState(unsent=("one",)))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        put_alerts(state_file, Outbox(tmp_path / "file"))
    assert state_file.load().unsent == ("one",)
    assert (tmp_path / "trial" / UNSENT).exists()
